//! Files of `vidi ask`: exports of its answer, and clips.

use std::path::{Path, PathBuf};

use deploy::export::format::Format;
use deploy::export::media::{Media, Wishes};
use deploy::export::start::Start;
use deploy::export::{Export, clips, clock};
use protocol::event::JobResult;
use protocol::message::JobRequest;
use protocol::plan::MediaInfo;
use runtime::process::{Exit, Fatal, on_signal};
use runtime::remark;

use crate::cli::{Ask, Exports};

/// Files that are wanted of an answer, each with its format.
pub struct Plan {
    files: Vec<(PathBuf, Format)>,
    clips: Option<PathBuf>,
    wishes: Wishes,
    /// The video where this host has it.
    local: Option<PathBuf>,
    quiet: bool,
}

impl Plan {
    /// Files that a command line asks for; none if it asks for none. What can be wrong before there is an answer is told now:
    /// the answer may take minutes.
    ///
    /// # Errors
    /// For a file in no directory or in no known format, for markers that go to no .edl, and for clips of a video that is not
    /// on this host, or without ffmpeg.
    pub async fn new(ask: &Ask, local: Option<&Path>) -> Result<Option<Self>, Fatal> {
        let wrong = |text| Fatal(Exit::Usage, text);
        let Exports { files, format, edl_markers, drop_frame, start_tc, clips } = &ask.exports;
        if files.is_empty() && clips.is_none() {
            return Ok(None);
        }
        let named = |file: &PathBuf| destination(file, *format, *edl_markers).map(|format| (file.clone(), format));
        let files = files.iter().map(named).collect::<Result<Vec<_>, String>>().map_err(wrong)?;
        if *edl_markers && !files.iter().any(|(_, format)| *format == Format::EdlMarkers) {
            return Err(wrong("--edl-markers is about an .edl, and no --export is one".to_owned()));
        }
        if clips.is_some() {
            clips::check().await.map_err(wrong)?;
            if local.is_none() {
                let text =
                    format!("--clips cuts a video of this host, and {} is not here: export .sh instead", ask.video);
                return Err(wrong(text));
            }
        }
        let wishes = Wishes { drop_frame: *drop_frame, start: *start_tc };
        let local = local.map(Path::to_owned);
        Ok(Some(Plan { files, clips: clips.clone(), wishes, local, quiet: ask.quiet }))
    }

    /// Writes the files of an answer and cuts its clips.
    ///
    /// # Errors
    /// The files that cannot be made, each with the reason, once all others are; the first clip that fails.
    pub async fn carry_out(&self, request: &JobRequest, result: &JobResult, facts: &MediaInfo) -> Result<(), Fatal> {
        let failed = |text: String| Fatal(Exit::Other, format!("export failed: {text}"));
        let start = match &self.local {
            Some(file) => unless_interrupted(async { Ok(Start::of(file).await) }).await?,
            None => Start::default(),
        };
        let media = Media::new(&request.video, facts, start, self.wishes).map_err(failed)?;
        let resolution_s = clock::resolution_s(&result.text, result.plan.duration_s);
        let export = Export::new(media, &request.query, &result.ranges, resolution_s);
        if export.left_out > 0 {
            remark!("exports leave out {} ranges that are not in the video", export.left_out);
        }
        if export.cuts.is_empty() {
            remark!("exports are empty: the answer has no ranges");
        }
        if let Some(average) = export.average() {
            remark!("{average}");
        }
        let wrote = self.files.iter().map(|(file, format)| self.write(file, *format, &export));
        let troubles: Vec<String> = wrote.filter_map(Result::err).collect();
        if !troubles.is_empty() {
            return Err(failed(troubles.join("; ")));
        }
        let Some(dir) = &self.clips else { return Ok(()) };
        let cut = unless_interrupted(async { clips::cut(&export, dir).await.map_err(failed) }).await?;
        cut.uneven.iter().for_each(|sentence| remark!("{sentence}"));
        cut.files.iter().for_each(|file| self.tell(&format!("clip: {}", file.display())));
        Ok(())
    }

    fn write(&self, file: &Path, format: Format, export: &Export) -> Result<(), String> {
        let named = |why: String| format!("{}: {why}", file.display());
        let text = format.write(export).map_err(named)?;
        std::fs::write(file, text).map_err(|e| named(e.to_string()))?;
        self.tell(&format!("export: {}, {} ranges", file.display(), export.cuts.len()));
        Ok(())
    }

    fn tell(&self, text: &str) {
        if !self.quiet {
            remark!("{text}");
        }
    }
}

/// Format of a file that can be written there.
fn destination(file: &Path, format: Option<Format>, edl_markers: bool) -> Result<Format, String> {
    let format = format.map_or_else(|| Format::of(file), Ok)?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        return Err(format!("--export {}: there is no directory {}; make it first", file.display(), dir.display()));
    }
    Ok(if edl_markers && format == Format::Edl { Format::EdlMarkers } else { format })
}

/// Does something that Ctrl-C, or SIGTERM, ends.
///
/// # Errors
/// Its own, and when it was ended so.
pub async fn unless_interrupted<T>(doing: impl Future<Output = Result<T, Fatal>>) -> Result<T, Fatal> {
    let mut shutdown = on_signal();
    tokio::select! {
        done = doing => done,
        _ = shutdown.wait_for(|&s| s) => {
            Err(Fatal(Exit::Other, "interrupted: the answer is there, not all of its files are".to_owned()))
        }
    }
}
