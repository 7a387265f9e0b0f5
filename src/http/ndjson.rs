//! Batches as a stream: one event a line in, one result a line out, in order, in bounded memory.
//!
//! At most `stream_concurrency` lines are in work; the body is read no further until the first of them has its answer and the
//! caller has taken it. Each line waits where a request is refused, for its bytes, its permit and the encoder: a stream slows down
//! under load. Lines run in tasks of their own, so a caller who reads slowly holds no permits. Lines that share an idempotency key
//! take turns.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, stream};

use super::AppState;
use super::batch::{Task, Turn, Turns, Work, failed};
use super::body::{self, Buffered};
use super::budget::{BodyBudget, HeldBytes};
use super::context::{Deadline, RequestContext};
use super::problem::Problem;
use crate::error::Error;
use crate::event::EventWire;

/// Lines that are parsed ahead of those in work: so many that large ones, which are parsed on blocking threads, overlap.
const PARSED_AHEAD: usize = 4;

/// Answers a stream. `budget` is the time each line has, from when its work begins.
///
/// # Errors
/// 429 where too many streams are open.
pub(super) fn answer(
    state: AppState,
    context: RequestContext,
    budget: Duration,
    body: Body,
    task: Task,
) -> Result<Response, Problem> {
    let stream = state.bodies.try_open_stream().ok_or_else(|| state.overloaded())?;
    let concurrency = state.config.stream_concurrency;
    let limits = state.limits;
    let lines = Lines {
        chunks: body.into_data_stream(),
        splitter: LineSplitter::new(state.config.max_line_bytes),
        ready: VecDeque::new(),
        idle_timeout: state.config.body_read_timeout,
        ended: false,
        bodies: state.bodies.clone(),
    };
    let context = Arc::new(context);
    let mut turns = Turns::default();
    let results = stream::unfold(lines, |mut lines| async move { lines.next().await.map(|line| (line, lines)) })
        .map(move |line| async move {
            let parse = move |bytes: &[u8]| task.check(EventWire::from_json(bytes)?, &limits);
            let (work, held) = line?.parse(parse).await;
            Ok::<_, Problem>((work?, held))
        })
        .buffered(PARSED_AHEAD)
        .map(move |checked| {
            // The stream lives as long as this closure, which ends with the answer.
            let _ = &stream;
            let checked = checked.map(|(work, held)| (turns.next(&work), work, held));
            let (state, context) = (state.clone(), Arc::clone(&context));
            let tasks = state.tasks.clone();
            let work = async move {
                let result = match checked {
                    Ok((turn, work, held)) => run(&state, budget, turn, work, held).await,
                    Err(problem) => Err(problem),
                };
                let result = result.unwrap_or_else(|problem| failed(problem, &context));
                let mut text = String::from(Box::<str>::from(result));
                text.push('\n');
                text
            };
            let running = tasks.spawn(tracing::Instrument::in_current_span(work));
            // A panic is the only way a task ends without its result; the stream breaks off instead of skipping a line.
            async move { running.await.map_err(std::io::Error::other) }
        })
        .buffered(concurrency);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(results)).into_response())
}

/// Does the work of one line once it is admitted and the encoder has time for it; for both it waits as long as for the work itself.
async fn run(
    state: &AppState,
    budget: Duration,
    turn: Turn,
    work: Work,
    held: HeldBytes,
) -> Result<Box<serde_json::value::RawValue>, Problem> {
    turn.wait().await;
    let patience_ends = Instant::now() + budget;
    let held = Arc::new(held);
    loop {
        let admission = state.admission.admit_streamed(Arc::clone(&held));
        let permit = tokio::time::timeout_at(patience_ends.into(), admission).await.map_err(|_| Error::DeadlineExceeded)?;
        let refusal = match work.run(state, Deadline { budget, at: Instant::now() + budget }, permit).await {
            Ok((answer, _)) => return Ok(answer),
            Err(problem) => problem,
        };
        match refusal.retry_after() {
            Some(retry_after) if Instant::now() + retry_after < patience_ends => tokio::time::sleep(retry_after).await,
            _ => return Err(refusal),
        }
    }
}

/// The lines of a body. After a break or a pause that is too long comes one problem, then the end.
struct Lines {
    chunks: BodyDataStream,
    splitter: LineSplitter,
    ready: VecDeque<Result<Bytes, Problem>>,
    idle_timeout: Duration,
    ended: bool,
    bodies: BodyBudget,
}

impl Lines {
    /// The next line, once its bytes may be held; until then nothing more is read.
    async fn next(&mut self) -> Option<Result<Buffered, Problem>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(match line {
                    Ok(bytes) => Ok(Buffered { held: self.bodies.hold_line(bytes.len()).await, bytes }),
                    Err(problem) => Err(problem),
                });
            }
            if self.ended {
                return None;
            }
            match tokio::time::timeout(self.idle_timeout, self.chunks.next()).await {
                Ok(Some(Ok(chunk))) => self.splitter.push(&chunk, &mut self.ready),
                Ok(None) => {
                    self.ended = true;
                    self.splitter.end(&mut self.ready);
                }
                Ok(Some(Err(_))) => {
                    self.ended = true;
                    self.ready.push_back(Err(body::broken_off()));
                }
                Err(_) => {
                    self.ended = true;
                    self.ready.push_back(Err(body::too_slow()));
                }
            }
        }
    }
}

/// Cuts chunks into lines. A line that is too long gives one problem and is thrown away as it arrives; blank lines are skipped.
#[derive(Debug)]
struct LineSplitter {
    partial: Vec<u8>,
    max_line_bytes: usize,
    discarding: bool,
}

impl LineSplitter {
    fn new(max_line_bytes: usize) -> Self {
        Self { partial: Vec::new(), max_line_bytes, discarding: false }
    }

    fn push(&mut self, mut chunk: &[u8], lines: &mut VecDeque<Result<Bytes, Problem>>) {
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            self.extend(&chunk[..end], lines);
            self.end(lines);
            chunk = &chunk[end + 1..];
        }
        self.extend(chunk, lines);
    }

    /// The line, or the body, is at its end.
    fn end(&mut self, lines: &mut VecDeque<Result<Bytes, Problem>>) {
        let line = std::mem::take(&mut self.partial);
        if !std::mem::take(&mut self.discarding) && !line.trim_ascii().is_empty() {
            lines.push_back(Ok(Bytes::from(line)));
        }
    }

    fn extend(&mut self, bytes: &[u8], lines: &mut VecDeque<Result<Bytes, Problem>>) {
        if self.discarding {
            return;
        }
        if self.partial.len() + bytes.len() > self.max_line_bytes {
            self.discarding = true;
            self.partial = Vec::new();
            lines.push_back(Err(body::too_large(self.max_line_bytes)));
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_become_lines_wherever_they_are_cut() {
        #[track_caller]
        fn check(input: &str, expected: &[Result<&str, u16>]) {
            let expected: Vec<Result<String, u16>> = expected.iter().map(|line| line.map(str::to_owned)).collect();
            for chunk_bytes in 1..=input.len() {
                let mut splitter = LineSplitter::new(5);
                let mut lines = VecDeque::new();
                for chunk in input.as_bytes().chunks(chunk_bytes) {
                    splitter.push(chunk, &mut lines);
                }
                splitter.end(&mut lines);
                let lines: Vec<Result<String, u16>> = lines
                    .into_iter()
                    .map(|line| line.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).map_err(|problem| problem.status))
                    .collect();
                assert_eq!(lines, expected, "{input:?} in chunks of {chunk_bytes}");
            }
        }

        check("ab\ncd\n", &[Ok("ab"), Ok("cd")]);
        check("ab\ncd", &[Ok("ab"), Ok("cd")]);
        check("ab\r\n\r\n \n\ncd\n", &[Ok("ab\r"), Ok("cd")]);
        check("abcde\nabcdef\nab\n", &[Ok("abcde"), Err(413), Ok("ab")]);
        check("abcdefghijk", &[Err(413)]);
        check("\n", &[]);
    }
}
