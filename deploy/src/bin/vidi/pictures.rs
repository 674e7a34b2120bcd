//! Pictures of an answer that `vidi ask` draws: a time line, and a contact sheet.

use std::path::{Path, PathBuf};

use config::replace;
use deploy::export::media::Media;
use deploy::export::raster::{self, Raster};
use deploy::export::{Export, contact_sheet, process, timeline};

use crate::cli::Exports;
use crate::export::writable;

/// Pictures that are wanted of an answer.
#[derive(Default)]
pub struct Pictures {
    /// File of the time line, with the format of its pixels; none for an SVG.
    timeline: Option<(PathBuf, Option<Raster>)>,
    sheet: Option<PathBuf>,
    /// Ranges on a contact sheet at most.
    rows: usize,
}

impl Pictures {
    /// Pictures that a command line asks for; `local` is the video where this host has it.
    ///
    /// # Errors
    /// For a file that cannot be written or whose ending says no format, a video that is not on this host, and where no
    /// picture can be drawn.
    pub async fn new(exports: &Exports, video: &Path, local: Option<&Path>) -> Result<Self, String> {
        let Exports { timeline, contact_sheet, sheet_rows, .. } = exports;
        let timeline = timeline.as_ref().map(|file| Ok::<_, String>((file.clone(), form(file)?))).transpose()?;
        if let Some((file, _)) = &timeline {
            writable("--timeline", file, local)?;
        }
        if let Some(file) = contact_sheet {
            if !matches!(ending(file).as_str(), "jpg" | "jpeg") {
                return Err(format!("--contact-sheet {}: it is a JPEG, name it .jpg", file.display()));
            }
            writable("--contact-sheet", file, local)?;
        }
        let pictures = Pictures { timeline, sheet: contact_sheet.clone(), rows: *sheet_rows as usize };
        let Some(option) = pictures.first() else { return Ok(pictures) };
        if local.is_none() {
            return Err(format!("{option} shows frames of a video of this host, and {} is not here", video.display()));
        }
        process::check(option).await?;
        if pictures.sheet.is_some() || matches!(pictures.timeline, Some((_, Some(_)))) {
            raster::check().await?;
        }
        Ok(pictures)
    }

    /// Option of the first one; none where there is none.
    pub fn first(&self) -> Option<&'static str> {
        self.timeline.as_ref().map(|_| "--timeline").or(self.sheet.as_ref().map(|_| "--contact-sheet"))
    }

    /// Files of them.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.timeline.iter().map(|(file, _)| file).chain(&self.sheet)
    }

    /// Checks that a contact sheet of a media file can be made, where one is wanted.
    ///
    /// # Errors
    /// For a file without pictures.
    pub fn suits(&self, media: &Media) -> Result<(), String> {
        let Some(file) = &self.sheet else { return Ok(()) };
        let empty = Export::new(media.clone(), "", &[], 0.0);
        empty
            .pictures("a contact sheet")
            .map(|_| ())
            .map_err(|why| format!("--contact-sheet {}: {why}", file.display()))
    }

    /// Draws and writes them. Returns a sentence about each that was written, and why others were not.
    pub async fn draw(&self, export: &Export) -> (Vec<String>, Vec<String>) {
        let mut outcomes = Vec::new();
        if let Some((file, raster)) = &self.timeline {
            let drawn = written(file, timeline::svg(export).await, *raster).await;
            outcomes.push(drawn.map(|()| format!("time line: {}, {} ranges", file.display(), export.cuts.len())));
        }
        if let Some(file) = &self.sheet {
            let sheet = contact_sheet::sheet(export, self.rows).await;
            let left_out = sheet.as_ref().map_or(0, |sheet| sheet.left_out);
            let drawn = written(file, sheet.map(|sheet| sheet.svg), Some(Raster::Jpeg)).await;
            let (shown, all) = (export.cuts.len() - left_out, export.cuts.len());
            let more = if left_out > 0 { "; --sheet-rows says how many it shows" } else { "" };
            outcomes.push(drawn.map(|()| format!("contact sheet: {}, {shown} of {all} ranges{more}", file.display())));
        }
        let (done, troubles): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        (done.into_iter().flatten().collect(), troubles.into_iter().filter_map(Result::err).collect())
    }
}

/// Writes a picture, as pixels where a format of them is given.
async fn written(file: &Path, svg: Result<String, String>, raster: Option<Raster>) -> Result<(), String> {
    let bytes = match (svg, raster) {
        (Ok(svg), Some(raster)) => raster::pixels(&svg, raster).await,
        (svg, _) => svg.map(String::into_bytes),
    };
    let named = |why: String| format!("{}: {why}", file.display());
    replace::write(file, &bytes.map_err(named)?).map_err(|e| named(e.to_string()))
}

/// Ending of a file's name, in small letters; empty without one.
fn ending(file: &Path) -> String {
    file.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Format of a time line by the ending of its file's name; none for an SVG.
fn form(file: &Path) -> Result<Option<Raster>, String> {
    match ending(file).as_str() {
        "svg" => Ok(None),
        "png" => Ok(Some(Raster::Png)),
        _ => Err(format!("--timeline {}: end its name with .svg or .png", file.display())),
    }
}
