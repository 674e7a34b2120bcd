//! Any of the five stages from one binary: `vidi stage NAME`.

use std::io::Read;
use std::time::{Duration, Instant};

use config::Config;
use protocol::error::StageName;
use runtime::notify::Notifier;
use runtime::process::{self, Fatal};
use runtime::remark;
use runtime::run::Shutdown;
use tokio::sync::watch;

/// Time that a stage has to drain once its supervisor is gone.
const LAST_GRACE: Duration = Duration::from_secs(30);
/// Pause before a stage that drains looks again whether its broker is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Serves one stage in this process until `shutdown`, and tells `notifier` how it fares.
///
/// # Errors
/// What keeps it from starting.
pub async fn serve(stage: StageName, config: &Config, shutdown: Shutdown, notifier: Notifier) -> Result<(), Fatal> {
    match stage {
        #[cfg(feature = "gstreamer")]
        StageName::Decode => process::serve(config, stage_decode::open, shutdown, notifier).await,
        #[cfg(not(feature = "gstreamer"))]
        StageName::Decode => {
            let text = "this vidi was built without GStreamer and cannot decode: build with `--features gstreamer`";
            Err(Fatal(process::Exit::Usage, text.to_owned()))
        }
        StageName::Vision => process::serve(config, stage_vision::open, shutdown, notifier).await,
        StageName::Audio => process::serve(config, stage_audio::open, shutdown, notifier).await,
        StageName::Fuse => process::serve(config, stage_fuse::open, shutdown, notifier).await,
        StageName::Llm => process::serve_owner(config, stage_llm::open, shutdown, notifier).await,
    }
}

/// A shutdown that also begins when standard input ends: stages end with a supervisor that was killed. Where the broker
/// ends with that supervisor (`broker_of`, its process id), there is nothing to drain over: the stage ends at once, so
/// that the next one has its memory.
pub fn until_stdin_ends(mut shutdown: Shutdown, broker_of: Option<u32>) -> Shutdown {
    let (sender, receiver) = watch::channel(false);
    let on_signal = sender.clone();
    let supervisor = std::os::unix::process::parent_id();
    tokio::spawn(async move {
        if shutdown.wait_for(|&s| s).await.is_ok() {
            on_signal.send_replace(true);
        }
    });
    // A thread of its own: a read of standard input cannot be given up, and must not keep the runtime from ending.
    std::thread::spawn(move || {
        let mut buffer = [0u8; 64];
        while matches!(std::io::stdin().read(&mut buffer), Ok(n) if n > 0) {}
        sender.send_replace(true);
        // A stage that cannot drain (its broker is gone, say) must not outlive its supervisor for long. One that lives has a
        // patience of its own: an unloaded stage answers its job, and writes to disk what it has to.
        let mut until = Instant::now() + LAST_GRACE;
        let broker_gone = || broker_of.is_some_and(|pid| std::os::unix::process::parent_id() != pid);
        while Instant::now() < until && !broker_gone() {
            std::thread::sleep(LOOK_AGAIN);
            if std::os::unix::process::parent_id() == supervisor {
                until = Instant::now() + LAST_GRACE;
            }
        }
        match broker_gone() {
            true => remark!("error: supervisor and broker are gone: ending without a drain"),
            false => remark!("error: not drained after {LAST_GRACE:?}: ending"),
        }
        std::process::exit(process::Exit::Other as i32);
    });
    receiver
}
