//! Limits on the work that a file may cause.

use std::path::Path;
use std::time::Duration;

use protocol::error::JobError;

use crate::failure;

/// Limits on the work that a file may cause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest time without progress: nothing read, and nothing done with what was.
    pub(crate) stall: Duration,
    /// Largest number of pixels of a picture.
    pub(crate) max_pixels: u64,
}

impl Limits {
    /// Checks the size of a file's pictures.
    ///
    /// # Errors
    /// `unsupported_media` for larger ones than allowed, with the figures.
    pub(crate) fn check(self, path: &Path, [width, height]: [u32; 2]) -> Result<(), JobError> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels <= self.max_pixels { Ok(()) } else { Err(failure::too_large(path, [width, height], self.max_pixels)) }
    }
}
