//! Files of `vidi ask`: exports of its answer, pictures, and clips.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::replace;
use deploy::export::format::Format;
use deploy::export::media::{Media, Wishes};
use deploy::export::start::Start;
use deploy::export::{Export, clips, clock};
use protocol::error::JobError;
use protocol::event::JobResult;
use protocol::message::JobRequest;
use protocol::plan::MediaInfo;
use runtime::bus::Bus;
use runtime::process::{Exit, Fatal, on_signal};
use runtime::remark;
use runtime::run::owner::media_info;

use crate::cli::{Ask, Exports};
use crate::pictures::Pictures;

/// Time that the facts of a file are waited for before its question is asked. Stages that are unloaded, or busy for longer, give
/// them after the answer.
const FACTS_WAIT: Duration = Duration::from_secs(5);

/// State of things when an interrupt ends the command after the answer.
const UNFINISHED: &str = "the answer is there, not all of its files are";

/// Files that are wanted of an answer, each with its format.
pub struct Plan {
    files: Vec<(PathBuf, Format)>,
    pictures: Pictures,
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
    /// For a file that cannot be written, is given twice, or is in no known format; for markers that go to no .edl; for clips
    /// or pictures of a video that is not on this host, or without ffmpeg.
    pub async fn new(ask: &Ask, local: Option<&Path>) -> Result<Option<Self>, Fatal> {
        let wrong = |text| Fatal(Exit::Usage, text);
        let Exports { files, format, edl_markers, drop_frame, start_tc, clips, .. } = &ask.exports;
        let pictures = Pictures::new(&ask.exports, &ask.video, local).await.map_err(wrong)?;
        if files.is_empty() && clips.is_none() && pictures.first().is_none() {
            return Ok(None);
        }
        let named = |argument: &PathBuf| destination(argument, *format, *edl_markers, local);
        let files = files.iter().map(named).collect::<Result<Vec<_>, String>>().map_err(wrong)?;
        let all: Vec<&PathBuf> = files.iter().map(|(file, _)| file).chain(pictures.files()).collect();
        let different: BTreeSet<&PathBuf> = all.iter().copied().collect();
        if different.len() < all.len() {
            let text = format!("{} exports go to {} files: give each a name of its own", all.len(), different.len());
            return Err(wrong(text));
        }
        if *edl_markers && !files.iter().any(|(_, format)| *format == Format::EdlMarkers) {
            return Err(wrong("--edl-markers is about an .edl, and no --export is one".to_owned()));
        }
        if let Some(dir) = clips {
            clips::check(dir).await.map_err(wrong)?;
            if local.is_none() {
                let text = format!(
                    "--clips cuts a video of this host, and {} is not here: export .sh instead",
                    ask.video.display()
                );
                return Err(wrong(text));
            }
        }
        let wishes = Wishes { drop_frame: *drop_frame, start: *start_tc };
        let local = local.map(Path::to_owned);
        Ok(Some(Plan { files, pictures, clips: clips.clone(), wishes, local, quiet: ask.quiet }))
    }

    /// Media file of a question that is not asked yet, so that what its files cannot hold is told before the answer. None
    /// where no stage tells its facts now: the question is asked all the same, and its end says why.
    ///
    /// # Errors
    /// As [`media`](Self::media), and for an interrupt.
    pub async fn media_before(&self, bus: &Bus, request: &JobRequest) -> Result<Option<Media>, Fatal> {
        let facts = async { Ok(tokio::time::timeout(FACTS_WAIT, media_info(bus, &request.video)).await) };
        match unless_interrupted(facts, "nothing was asked").await? {
            Ok(Ok(facts)) => self.media(request, &facts).await.map(Some),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Media file of a question that is answered.
    ///
    /// # Errors
    /// As [`media`](Self::media), when its facts cannot be had, and for an interrupt.
    pub async fn media_after(&self, bus: &Bus, request: &JobRequest) -> Result<Media, Fatal> {
        let unknown = |e: JobError| {
            let text = "export failed: the video's frame rate is not known, since its probe failed";
            Fatal(Exit::Other, format!("{text}: {e}"))
        };
        let facts = async { media_info(bus, &request.video).await.map_err(unknown) };
        let facts = unless_interrupted(facts, UNFINISHED).await?;
        self.media(request, &facts).await
    }

    /// Media file with these facts.
    ///
    /// # Errors
    /// For time codes that it cannot have, and for the formats that cannot be about it, all of them; for an interrupt.
    async fn media(&self, request: &JobRequest, facts: &MediaInfo) -> Result<Media, Fatal> {
        let wrong = |text| Fatal(Exit::Usage, text);
        let start = match &self.local {
            Some(file) => unless_interrupted(async { Ok(Start::of(file).await) }, "no file is written").await?,
            None => Start::default(),
        };
        let media = Media::new(&request.video, facts, start, self.wishes).map_err(wrong)?;
        let unfit = |(file, format): &(PathBuf, Format)| {
            format.suits(&media).err().map(|why| format!("--export {}: {why}", file.display()))
        };
        let unfit = self.files.iter().filter_map(unfit);
        let troubles: Vec<String> = unfit.chain(self.pictures.suits(&media).err()).collect();
        if troubles.is_empty() { Ok(media) } else { Err(wrong(troubles.join("; "))) }
    }

    /// Writes the files of an answer, draws its pictures and cuts its clips.
    ///
    /// # Errors
    /// The files that cannot be made, each with the reason, once all others are; the first clip that fails.
    pub async fn carry_out(&self, request: &JobRequest, result: &JobResult, media: Media) -> Result<(), Fatal> {
        let failed = |text: String| Fatal(Exit::Other, format!("export failed: {text}"));
        let resolution_s = clock::resolution_of(result);
        let export = Export::new(media, &asked(request), &result.ranges, resolution_s);
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
        let mut troubles: Vec<String> = wrote.filter_map(Result::err).collect();
        let drawing = async { Ok(self.pictures.draw(&export).await) };
        let (drawn, undrawn) = unless_interrupted(drawing, UNFINISHED).await?;
        drawn.iter().for_each(|sentence| self.tell(sentence));
        troubles.extend(undrawn);
        if !troubles.is_empty() {
            return Err(failed(troubles.join("; ")));
        }
        let Some(dir) = &self.clips else { return Ok(()) };
        let cut = async { clips::cut(&export, dir).await.map_err(failed) };
        let cut = unless_interrupted(cut, UNFINISHED).await?;
        cut.uneven.iter().for_each(|sentence| remark!("{sentence}"));
        cut.files.iter().for_each(|file| self.tell(&format!("clip: {}", file.display())));
        Ok(())
    }

    fn write(&self, file: &Path, format: Format, export: &Export) -> Result<(), String> {
        let named = |why: String| format!("{}: {why}", file.display());
        let content = format.write(export).map_err(named)?;
        replace::write(file, &content).map_err(|e| named(e.to_string()))?;
        self.tell(&format!("export: {}, {} ranges", file.display(), export.cuts.len()));
        Ok(())
    }

    fn tell(&self, text: &str) {
        if !self.quiet {
            remark!("{text}");
        }
    }
}

/// What a request asks, on one line: its question, or all of them.
fn asked(request: &JobRequest) -> String {
    if request.queries.is_empty() { request.query.clone() } else { request.queries.join("; ") }
}

/// Format and file of an `--export`, which can be written there.
fn destination(
    argument: &Path,
    format: Option<Format>,
    edl_markers: bool,
    local: Option<&Path>,
) -> Result<(PathBuf, Format), String> {
    let (format, file) = match format {
        Some(format) => (format, argument.to_owned()),
        None => Format::and_file(argument)?,
    };
    if file.as_os_str().is_empty() {
        return Err(format!("--export {}: it names no file; name a file", argument.display()));
    }
    writable("--export", &file, local)?;
    Ok((file, if edl_markers && format == Format::Edl { Format::EdlMarkers } else { format }))
}

/// Checks that a file may be written: its directory is there, and it is neither a directory nor the video, which is `local`.
///
/// # Errors
/// Otherwise, with what to do; `option` asked for it.
pub fn writable(option: &str, file: &Path, local: Option<&Path>) -> Result<(), String> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shown = file.display();
    if !dir.is_dir() {
        return Err(format!("{option} {shown}: there is no directory {}; make it first", dir.display()));
    }
    if file.is_dir() {
        return Err(format!("{option} {shown}: this is a directory; name a file"));
    }
    if local.is_some() && file.canonicalize().ok().as_deref() == local {
        return Err(format!("{option} {shown}: this is the video itself; name another file"));
    }
    Ok(())
}

/// Does something that Ctrl-C, or SIGTERM, ends; `state` is how things are then.
///
/// # Errors
/// Its own, and when it was ended so.
async fn unless_interrupted<T>(doing: impl Future<Output = Result<T, Fatal>>, state: &str) -> Result<T, Fatal> {
    let mut shutdown = on_signal();
    tokio::select! {
        done = doing => done,
        _ = shutdown.wait_for(|&s| s) => Err(Fatal(Exit::Other, format!("interrupted: {state}"))),
    }
}
