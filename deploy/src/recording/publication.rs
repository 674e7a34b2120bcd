//! A recorded message as it is published again: as it was, or for another job, or cut smaller for another broker.

use bytes::Bytes;
use protocol::event::JobEvent;
use protocol::message::{DecodeRequest, FeatureBatch, FrameBatch, JobId, JobRequest, Output, PcmWindow, TokenBatch};
use protocol::wire::{self, Encoding, WireError, WireErrorKind};
use runtime::subject::Subjects;

use super::format::Record;
use super::kind::Kind;

/// One message to store.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// Subject to publish on.
    pub subject: String,
    /// `Nats-Msg-Id`.
    pub message_id: String,
    /// Job of the message; the other headers follow from it.
    pub job: JobId,
    /// The body.
    pub body: Bytes,
}

/// Turns a record into what is published below `subjects`, in bodies of at most `max_bytes`. With `rename` the job is
/// another one in subject, headers, id and body; without it, a body that fits is sent byte for byte.
///
/// # Errors
/// A body that has to be understood (for another job, or to be cut) and cannot be; a kind that is not stored.
pub fn publications(
    record: &Record,
    subjects: &Subjects,
    rename: Option<&JobId>,
    max_bytes: usize,
) -> Result<Vec<Publication>, WireError> {
    let unusable = |what: String| WireError::new(WireErrorKind::Value, what);
    let kind = record.kind().ok_or_else(|| unusable(format!("{}: unknown subject", record.subject)))?;
    let recorded = record.job().ok_or_else(|| unusable(format!("{}: names no job", record.subject)))?;
    let job = rename.cloned().unwrap_or_else(|| recorded.clone());
    let subject = kind.subject(subjects, &job).ok_or_else(|| unusable(format!("{kind} is not stored by a stream")))?;
    let recorded_id = record.header("Nats-Msg-Id");
    let message =
        |message_id: String, body: Bytes| Publication { subject: subject.clone(), message_id, job: job.clone(), body };
    if rename.is_none() && record.body.len() <= max_bytes {
        let id = recorded_id.map_or_else(|| format!("{job}/{kind}-{}/replay", record.at_us), str::to_owned);
        return Ok(vec![message(id, Bytes::copy_from_slice(&record.body))]);
    }
    // The id goes with the job; one that a client left out is made up.
    let id = recorded_id
        .and_then(|id| id.strip_prefix(recorded.as_str()))
        .map_or_else(|| format!("{job}/{kind}-{}/replay", record.at_us), |rest| format!("{job}{rest}"));
    let encoding = Encoding::of(&record.body);
    let body = match kind {
        Kind::Jobs => wire::encode_as(encoding, &JobRequest { job: job.clone(), ..wire::decode_any(&record.body)? }),
        Kind::Events => wire::encode_as(encoding, &JobEvent { job: job.clone(), ..wire::decode_any(&record.body)? }),
        Kind::Decode => wire::encode(&DecodeRequest { job: job.clone(), ..wire::decode(&record.body)? }),
        _ => {
            let output = for_job(output(kind, &record.body)?, &job);
            let bodies = output.encode(max_bytes)?;
            return Ok(bodies.into_iter().map(|(id, body)| message(id, body.into())).collect());
        }
    };
    Ok(vec![message(id, body.into())])
}

/// A batch of rows.
///
/// # Errors
/// As [`wire::decode`]; a kind that carries no rows.
pub fn output(kind: Kind, body: &[u8]) -> Result<Output<'_>, WireError> {
    Ok(match kind {
        Kind::Frames => Output::Frames(wire::decode::<FrameBatch<'_>>(body)?),
        Kind::Audio => Output::Pcm(wire::decode::<PcmWindow<'_>>(body)?),
        Kind::Features => Output::Features(wire::decode::<FeatureBatch<'_>>(body)?),
        Kind::Tokens => Output::Tokens(wire::decode::<TokenBatch<'_>>(body)?),
        kind => return Err(WireError::new(WireErrorKind::Value, format!("{kind} carries no rows"))),
    })
}

fn for_job<'a>(mut output: Output<'a>, job: &JobId) -> Output<'a> {
    let slot = match &mut output {
        Output::Frames(m) => &mut m.job,
        Output::Pcm(m) => &mut m.job,
        Output::Features(m) => &mut m.job,
        Output::Tokens(m) => &mut m.job,
    };
    *slot = job.clone();
    output
}
