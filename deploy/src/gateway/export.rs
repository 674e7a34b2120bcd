//! `GET /v1/jobs/{id}/export?format=...`: the ranges of an answer as a file.

use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use clap::ValueEnum;
use protocol::event::Event;
use protocol::file_uri;
use protocol::message::JobRequest;
use runtime::run::owner::media_info;
use serde::Deserialize;

use super::answer;
use super::intake;
use super::job_routes::no_job;
use super::problem::{Kind, Problem};
use super::state::App;
use crate::ask::End;
use crate::export::format::Format;
use crate::export::media::{Media, Wishes};
use crate::export::start::Start;
use crate::export::timecode::Code;
use crate::export::{Export, clock};

/// Query of the request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    format: String,
    #[serde(default)]
    drop_frame: bool,
    /// Time code of the first frame.
    start_tc: Option<String>,
    /// Video and question, of a job that did not come through this gateway.
    video: Option<String>,
    query: Option<String>,
}

/// Writes the file.
pub async fn export(
    State(app): State<App>,
    Path(job): Path<String>,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let job = intake::job_id(&job)?;
    let Query(wanted) = wanted.map_err(|e| Problem::bad_request(e.body_text()).hint("?format=edl, say"))?;
    let format = Format::from_str(&wanted.format, true).map_err(|_| {
        let known: Vec<String> = Format::value_variants().iter().map(|format| name(*format)).collect();
        Problem::bad_request(format!("no format {:?}", wanted.format)).hint(format!("known are {}", known.join(", ")))
    })?;
    let start: Option<Code> =
        wanted.start_tc.map(|text| text.parse()).transpose().map_err(|e: String| Problem::bad_request(e))?;
    let request = app.jobs.request(&job);
    let (pipeline, event) = app.job(&job).await?;
    let event = event.ok_or_else(|| no_job(&job))?;
    let result = match event.event {
        Event::Result(result) => *result,
        Event::Failed { error } => answer::answered(End::Failed(error), None)?,
        Event::Cancelled { by, stages_stopped, ms } => {
            answer::answered(End::Cancelled { by, stages_stopped, ms }, None)?
        }
        _ => {
            let problem = Problem::new(Kind::Conflict, format!("nothing to export: {job} is not answered yet"));
            return Err(problem.hint(format!("wait for the end of /v1/jobs/{job}/events")));
        }
    };
    let video = wanted.video.map(|video| app.mapped(&video)).or(request.as_ref().map(|r| r.video.clone()));
    let Some(video) = video else {
        let text = "nothing exported: the job did not come through this gateway, which does not know its video";
        return Err(Problem::bad_request(text).hint("add &video=PATH&query=QUESTION"));
    };
    let asked = |r: JobRequest| if r.queries.is_empty() { r.query } else { r.queries.join("; ") };
    let query = wanted.query.or(request.map(asked)).unwrap_or_default();
    let facts = media_info(&pipeline.bus, &video).await?;
    let place = app.on_disk(&video);
    let own = Start::of(&file_uri::path(&place)).await;
    let wishes = Wishes { drop_frame: wanted.drop_frame, start };
    let media = Media::new(&place, &facts, own, wishes).map_err(unfit)?;
    let resolution_s = clock::resolution_of(&result);
    let export = Export::new(media, &query, &result.ranges, resolution_s);
    let text = format.write(&export).map_err(unfit)?;
    let file = format!("attachment; filename=\"{job}.{}\"", ending(format));
    let mut response = ([(header::CONTENT_TYPE, kind(format))], text).into_response();
    if let Ok(file) = HeaderValue::from_str(&file) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, file);
    }
    Ok(response)
}

fn unfit(why: String) -> Problem {
    Problem::bad_request(format!("nothing exported: {why}"))
}

fn name(format: Format) -> String {
    format.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Ending of a file's name.
fn ending(format: Format) -> String {
    match format {
        Format::EdlMarkers => "edl".to_owned(),
        Format::Youtube => "txt".to_owned(),
        other => name(other),
    }
}

/// Type of a file's content.
fn kind(format: Format) -> &'static str {
    match format {
        Format::Otio | Format::Json => "application/json",
        Format::Fcpxml => "application/xml",
        Format::Vtt => "text/vtt; charset=utf-8",
        Format::Srt => "application/x-subrip",
        Format::Csv => "text/csv; charset=utf-8",
        Format::Edl | Format::EdlMarkers | Format::Ffmetadata | Format::Youtube | Format::Ffconcat | Format::Sh => {
            "text/plain; charset=utf-8"
        }
    }
}
