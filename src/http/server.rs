//! The accept loop: connections in, a bounded drain at the end.
//!
//! It is our own because a connection that never finishes its first request head, or never takes its answer, must neither live for
//! ever nor hold up shutdown.
//! Shutdown goes: accept no more, let requests in work finish, wait for decisions whose caller has gone, and after `drain_timeout`
//! leave whoever is left.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::config::ServerConfig;

/// Rest after an accept that failed for want of file descriptors; the connections in work give some back meanwhile.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Head room over `max_header_bytes` and `max_uri_bytes`, so that our own answer comes before the transport's bare one.
const HEAD_SLACK_BYTES: usize = 64 * 1024;
/// What an HTTP/2 caller may send of one body, and of all on a connection, before somebody reads it; and how many at once. They bound
/// what waits in memory uncounted.
const HTTP2_WINDOWS: (u32, u32) = (64 * 1024, 256 * 1024);
const HTTP2_STREAMS: u32 = 64;

/// Serves until `shutdown` resolves, then drains. `tasks` are the decisions in work.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    config: &ServerConfig,
    tasks: &TaskTracker,
    shutdown: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    // Each permit is held by one connection; a full house leaves further callers in the kernel's backlog.
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accept = async {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            accepted = accept => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), config, &graceful);
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(listener);
    connections.close();
    tasks.close();
    let drained = async {
        graceful.shutdown().await;
        connections.wait().await;
        tasks.wait().await;
    };
    if tokio::time::timeout(config.drain_timeout, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), decisions = tasks.len(), "the drain timeout passed; leaving the rest");
    }
}

/// Serves one connection. One whose first request head is not whole in time is dropped, whatever bytes it has sent.
fn connection(
    stream: TcpStream,
    router: Router,
    config: &ServerConfig,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + use<> {
    // Answers are small and written whole; waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = &error as &dyn std::error::Error, "no TCP_NODELAY");
    }
    let asked = Arc::new(AtomicBool::new(false));
    let service = {
        let asked = Arc::clone(&asked);
        hyper::service::service_fn(move |request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let router = router.clone();
            async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_read_timeout)
        .max_buf_size(config.max_header_bytes + config.max_uri_bytes + HEAD_SLACK_BYTES);
    let (stream_window, connection_window) = HTTP2_WINDOWS;
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(config.header_read_timeout)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_concurrent_streams(HTTP2_STREAMS);
    let stream = WriteTimeout { stream, timeout: config.write_timeout, stalled: None };
    let serving = graceful.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    let header_read_timeout = config.header_read_timeout;
    async move {
        let mut serving = std::pin::pin!(serving);
        let first = tokio::time::timeout(header_read_timeout, &mut serving).await;
        let ended = match first {
            Ok(ended) => ended,
            Err(_) if asked.load(Ordering::Relaxed) => serving.await,
            Err(_) => return,
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection broke");
        }
    }
}

/// A connection that breaks where the peer takes nothing of what is written for `timeout`.
struct WriteTimeout {
    stream: TcpStream,
    timeout: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    fn limit(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteTimeout {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limit(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limit(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
