//! The commands of the `sluice` binary.
//!
//! Results go to standard output, logs and progress to standard error. Exit status 0: done; 1: done, but something was found wrong
//! (a row without an answer, a broken audit chain, a policy case that fails); 2: it could not be done.

mod bulk;
mod inspect;
mod rows;
mod table;

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use sluice::application::{self, Application};
use sluice::config::{Config, RawConfig};
use sluice::telemetry;

use self::bulk::BulkArgs;

/// Decides fulfilment exceptions: what it is, what is at stake, what to do next, and whether a machine may do it alone.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit status: 0 done; 1 done, but something was found wrong; 2 it could not be done.")]
pub(crate) struct Cli {
    /// TOML file that overrides single keys of the defaults; SLUICE__SECTION__KEY in the environment overrides both
    #[arg(long, global = true, value_name = "FILE", env = "SLUICE_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the HTTP service (the default)
    Serve,
    /// Classify events of a file; one JSON answer a line on standard output, in order, nothing recorded
    Classify(BulkArgs),
    /// Decide events of a file and record the decisions; one JSON answer a line on standard output, in order
    Recommend(BulkArgs),
    /// Look at bundles
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Look at the record of decisions
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at policies
    #[command(subcommand)]
    Policy(PolicyCommand),
}

#[derive(Debug, Subcommand)]
enum BundleCommand {
    /// Check every file of a bundle against its hash, load it, and run its golden cases
    Verify {
        /// Directory of the bundle; the configured one where none is named
        path: Option<PathBuf>,
    },
    /// Show what a bundle says of itself
    Show {
        /// Directory of the bundle; the configured one where none is named
        path: Option<PathBuf>,
    },
    /// List the bundles beside the configured one
    List,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Walk the audit chain and recompute every hash; safe beside a running service
    Verify {
        /// Sequence and hash of a record kept elsewhere, as in the `audit` block of an answer
        #[arg(long, value_name = "SEQ:HASH")]
        expect_head: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the configuration that would be used
    Print,
    /// Say whether the service would start with the configuration; the port and a running service's store are left alone
    Check,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Check a policy file and run its cases
    Check {
        /// The policy file; the configured one where none is named
        file: Option<PathBuf>,
    },
}

/// How a command ended that could be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub(crate) async fn run(self) -> anyhow::Result<Outcome> {
        let raw = RawConfig::load(self.config.as_deref())?;
        let command = match self.command {
            Some(Command::Config(ConfigCommand::Print)) => {
                print(raw.to_toml().trim_end())?;
                return Ok(Outcome::Success);
            }
            command => command.unwrap_or(Command::Serve),
        };
        let config = raw.check()?;
        telemetry::init(&config.log)?;
        match command {
            Command::Serve => serve(config).await,
            Command::Classify(args) => bulk::run(config, args, bulk::Task::Classify).await,
            Command::Recommend(args) => bulk::run(config, args, bulk::Task::Recommend).await,
            Command::Bundle(BundleCommand::Verify { path }) => inspect::verify_bundle(&config, path).await,
            Command::Bundle(BundleCommand::Show { path }) => inspect::show_bundle(&config, path),
            Command::Bundle(BundleCommand::List) => inspect::list_bundles(&config),
            Command::Audit(AuditCommand::Verify { expect_head }) => inspect::verify_audit(&config, expect_head.as_deref()).await,
            Command::Config(_) => {
                application::check(&config).await?;
                print("the configuration is accepted: the service would start with it")?;
                Ok(Outcome::Success)
            }
            Command::Policy(PolicyCommand::Check { file }) => inspect::check_policy(&config, file),
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<Outcome> {
    let shutdown = shutdown_signal()?;
    let application = Application::build(config).await?;
    let address = application.address();
    print(&format!(
        "listening on http://{address}  (docs: http://{address}/docs/)\ntry:\n  \
         curl -s http://{address}/v1/recommend -H 'content-type: application/json' -d '\
         {{\"id\":\"evt-1\",\"source\":\"demo\",\"occurred_at\":\"2026-05-18T14:03:22Z\",\
         \"narrative\":\"Line 2 short pick, found 28 of 40, rest not in bin\",\
         \"order\":{{\"value\":1825.0,\"currency\":\"USD\",\"partial_allowed\":true,\
         \"lines\":[{{\"line\":2,\"sku\":\"BRG-6204\",\"ordered\":40,\"available\":28}}]}},\
         \"customer\":{{\"sla_tier\":\"gold\"}}}}'"
    ))?;
    application.run_until(shutdown).await;
    Ok(Outcome::Success)
}

/// Resolves on SIGTERM or Ctrl-C.
fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        #[cfg(unix)]
        let terminated = async {
            terminate.recv().await;
        };
        #[cfg(not(unix))]
        let terminated = std::future::pending::<()>();
        tokio::select! {
            // Without a handler for Ctrl-C the system's own ends the process, which is what was asked for.
            _ = tokio::signal::ctrl_c() => {}
            () = terminated => {}
        }
        tracing::info!("shutting down");
    })
}

/// Writes a result to standard output.
fn print(text: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{text}")?;
    output.flush()?;
    Ok(())
}
