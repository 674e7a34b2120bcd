//! Trial of a track: whether anything of it decodes.

use std::time::{Duration, Instant};

use protocol::error::JobError;
use protocol::stage::Stop;

use super::limits::Limits;
use super::selection::Selection;
use super::{Interruption, TrackPipeline, tail};
use crate::failure;
use crate::media_file::MediaFile;

/// Longest time of a trial. What has not failed by then counts as decodable.
const LONGEST: Duration = Duration::from_secs(4);

/// Why nothing of a track decodes; none if something does, or if that is not known in time.
///
/// # Errors
/// `Cancelled` once `cancelled` says so, and the refusal of the whole file.
pub(crate) fn trial(
    media: &MediaFile,
    selection: &Selection,
    limits: Limits,
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<JobError>, Stop> {
    super::init()?;
    let (convert, caps) = tail(selection.kind)?;
    let track = match TrackPipeline::start(media, selection.clone(), &convert, &caps, limits) {
        Ok(track) => track,
        Err(error) => return Ok(Some(error)),
    };
    let began = Instant::now();
    match track.pull(&|| cancelled() || began.elapsed() > LONGEST) {
        Ok(Some(_)) => Ok(None),
        Ok(None) => Ok(Some(failure::unsupported(media.path(), "nothing of it decodes"))),
        Err(Interruption::Cancelled) if cancelled() => Err(Stop::Cancelled),
        Err(Interruption::Cancelled) => Ok(None),
        Err(Interruption::Refused(error)) => Err(error.into()),
        Err(Interruption::Broken(error) | Interruption::Stalled(error)) => Ok(Some(error)),
    }
}
