//! A pipeline that is stopped when it is dropped.

use gst::prelude::*;
use gstreamer as gst;

/// Pipeline that runs no longer than this lives.
pub(crate) struct Running(pub gst::Pipeline);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}
