//! All stages in one process: the same code on the same bus, one address space and, on a GPU, one CUDA context.

use config::Config;
use protocol::error::StageName;
use runtime::notify::Notifier;
use runtime::process::Fatal;
use tokio::sync::{mpsc, watch};

use super::stages;

/// Stages that run in this process.
pub struct InProcess {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    stop: watch::Sender<bool>,
    fatal: mpsc::UnboundedReceiver<Fatal>,
}

impl InProcess {
    /// Starts `replicas` instances of each stage.
    pub fn start(config: &Config, replicas: &[(StageName, usize)]) -> Self {
        let (stop, stopping) = watch::channel(false);
        let (report, fatal) = mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for &(stage, count) in replicas {
            for replica in 0..count {
                let (config, stopping, report) = (config.of_replica(stage, replica), stopping.clone(), report.clone());
                tasks.push(tokio::spawn(async move {
                    if let Err(fatal) = stages::serve(stage, &config, stopping, Notifier::default()).await {
                        // The receiver ends with this pipeline.
                        let _ = report.send(fatal);
                    }
                }));
            }
        }
        InProcess { tasks, stop, fatal }
    }

    /// Waits until a stage cannot go on.
    pub async fn fatal(&mut self) -> Fatal {
        match self.fatal.recv().await {
            Some(fatal) => fatal,
            None => std::future::pending().await,
        }
    }

    /// Drains every stage and waits for its end.
    pub async fn drain(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            // A task that panicked holds nothing.
            let _ = task.await;
        }
    }
}
