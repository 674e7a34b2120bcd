//! Start of GStreamer, once per process, so that its threads have no network.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use gst::prelude::*;
use gstreamer as gst;
use protocol::error::{ErrorKind, JobError};

use super::element;
use crate::failure;
use crate::offline;

/// Longest time for one buffer to pass the first pipeline.
const ONE_BUFFER: gst::ClockTime = gst::ClockTime::from_seconds(10);

/// Initialization of GStreamer, once per process. Where its threads keep the network, a warning says so.
///
/// # Errors
/// `internal`, if GStreamer does not start.
pub(crate) fn init() -> Result<(), JobError> {
    static READY: OnceLock<Result<(), String>> = OnceLock::new();
    READY.get_or_init(start).clone().map_err(|e| {
        JobError::new(ErrorKind::Internal, format!("GStreamer initialization failed: {e}"))
            .hint("install gstreamer1.0-plugins-base where stage-decode runs")
    })
}

/// Starts GStreamer in a thread without a network. GLib starts the threads of all pipelines from one that it starts with
/// the first of them: here, so that none has a network.
fn start() -> Result<(), String> {
    let begin = || {
        let entered = offline::enter();
        gst::init().map_err(|e| e.to_string())?;
        if streaming_threads_open_sockets() {
            let reason = entered.err().map_or("they do not inherit the filter".to_owned(), |error| error.to_string());
            tracing::warn!(
                reason,
                "the threads that decode media keep the network: no filter of system calls (seccomp) is in force; let \
                 this process reach nothing but the broker"
            );
        }
        Ok(())
    };
    let thread = thread::Builder::new().name("gstreamer-init".to_owned()).spawn(begin).map_err(|e| e.to_string())?;
    thread.join().unwrap_or_else(|_| Err("it panicked".to_owned()))
}

/// Whether a thread of a pipeline opens sockets; true as well if none was seen to be refused one.
fn streaming_threads_open_sockets() -> bool {
    let refused = Arc::new(AtomicBool::new(false));
    if let Err(error) = pass_one_buffer(refused.clone()) {
        tracing::debug!(%error, "the first pipeline did not run");
    }
    !refused.load(Ordering::Relaxed)
}

/// Runs a pipeline of one buffer, whose thread sets `refused` if it is refused a socket.
fn pass_one_buffer(refused: Arc<AtomicBool>) -> Result<(), JobError> {
    let pipeline = gst::Pipeline::new();
    let (source, sink) = (element("fakesrc")?, element("fakesink")?);
    source.set_property("num-buffers", 1i32);
    let built = pipeline.add_many([&source, &sink]).and_then(|()| source.link(&sink));
    let pad = source.static_pad("src").filter(|_| built.is_ok()).ok_or_else(|| failure::no_element("fakesrc"))?;
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        refused.store(!offline::opens_sockets(), Ordering::Relaxed);
        gst::PadProbeReturn::Ok
    });
    if pipeline.set_state(gst::State::Playing).is_ok()
        && let Some(bus) = pipeline.bus()
    {
        let _ = bus.timed_pop_filtered(ONE_BUFFER, &[gst::MessageType::Eos, gst::MessageType::Error]);
    }
    let _ = pipeline.set_state(gst::State::Null);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_pipelines_open_no_sockets_and_the_one_that_asks_for_them_does() {
        init().unwrap();
        assert!(offline::opens_sockets());
        assert!(!streaming_threads_open_sockets());
    }
}
