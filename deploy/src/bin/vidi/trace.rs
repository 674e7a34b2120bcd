//! `vidi trace`: where a job's time went.

use std::path::Path;

use config::Config;
use config::replace;
use deploy::client::events_so_far;
use deploy::trace::{Trace, gantt, text};
use protocol::message::JobId;
use runtime::bus::Role;
use runtime::process::{Exit, Fatal};
use runtime::{answer, remark};

use crate::export::writable;
use crate::running::connect;

/// Prints the trace of a job, or draws it to a file.
///
/// # Errors
/// For what is no job's id, a file that cannot be written, without a broker, and when the broker has no events of the job.
pub async fn trace(config: &Config, job: String, svg: Option<&Path>) -> Result<(), Fatal> {
    let job = JobId::new(job).map_err(|e| Fatal(Exit::Usage, e.to_string()))?;
    if let Some(file) = svg {
        if !file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("svg")) {
            let text = format!("--svg {}: it is an SVG, name it .svg", file.display());
            return Err(Fatal(Exit::Usage, text));
        }
        writable("--svg", file, None).map_err(|e| Fatal(Exit::Usage, e))?;
    }
    let bus = connect(config, Role::Client).await?;
    let trace = Trace::of(&events_so_far(&bus, &job).await).ok_or_else(|| {
        let text = format!(
            "the broker has no events of {job}: no such job, or it ended more than bus.event_age_s ({} s) ago. Submit it \
             again under an id of your choice (`vidi ask --job`), and look then",
            config.bus.event_age_s
        );
        Fatal(Exit::Other, text)
    })?;
    let Some(file) = svg else { return Ok(answer!("{}", text::text(&trace))?) };
    let unwritten = |e| Fatal(Exit::Other, format!("trace failed: {}: {e}", file.display()));
    replace::write(file, gantt::svg(&trace).as_bytes()).map_err(unwritten)?;
    remark!("trace: {}", file.display());
    Ok(())
}
