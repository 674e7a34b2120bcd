//! Work of the engine on messages that it takes together. Those that fail so are tried alone, so that only who is to blame
//! fails.

use bytes::Bytes;
use serde::Deserialize;

use super::engine::guarded;
use protocol::error::{ErrorKind, JobError};
use protocol::message::JobId;
use protocol::stage::{Port, Stage, Stop, Work};
use protocol::wire::{self, Message};

/// Way out of a message's outputs that hears how the work on it goes.
pub trait Outward: Port {
    /// The work begins; a step of it may be as long as so many units take.
    fn sized(&mut self, units: u64);

    /// The work begins once more: what was made is made again.
    fn again(&mut self);

    /// The engine is done with the message.
    fn computed(&mut self);

    /// The message has failed: what is on its way is waited for.
    fn give_up(&mut self);
}

/// One of several messages that are computed together.
pub struct Member<P> {
    /// Body of the message.
    pub body: Bytes,
    /// Job on whose subject it came.
    pub job: JobId,
    /// Way out of its outputs.
    pub port: P,
}

/// Units of work of a message; one that cannot be read has no company.
pub fn units<S>(body: &[u8]) -> u64
where
    S: Stage,
    for<'a> S::Input<'a>: Deserialize<'a>,
{
    wire::decode::<S::Input<'_>>(body).map_or(u64::MAX, |input| S::units(&input))
}

/// Units that may be computed beside so many without a step more, where `most` are computed together.
pub fn room(units: u64, most: u64) -> u64 {
    if units == u64::MAX { 0 } else { (most - units % most) % most }
}

/// Computes messages together, and those that fail so each alone; the ports that come back, in the order of the messages, still
/// have outputs on their way.
pub fn compute<S, P>(stage: &mut S, mut members: Vec<Member<P>>) -> Vec<Result<P, Stop>>
where
    S: Stage,
    P: Outward,
    for<'a> S::Input<'a>: Deserialize<'a>,
{
    let count = members.len();
    let outcomes = if count > 1 { together(stage, &mut members) } else { Vec::new() };
    let mut tried: Vec<Option<Result<(), Stop>>> = outcomes.into_iter().map(Some).collect();
    tried.resize_with(count, || None);
    for (member, tried) in members.iter_mut().zip(&mut tried) {
        match tried {
            Some(Ok(())) => member.port.computed(),
            Some(Err(Stop::Failed(error))) => {
                tracing::debug!(job = %member.job, %error, "message failed beside others, tried alone");
                *tried = None;
            }
            _ => {}
        }
    }
    let finish = |(mut member, tried): (Member<P>, Option<Result<(), Stop>>)| {
        if let Some(Ok(())) = tried {
            return Ok(member.port);
        }
        let alone = || {
            member.port.again();
            guarded(|| alone(stage, &mut member)).inspect(|()| member.port.computed())
        };
        match tried.unwrap_or_else(alone) {
            Ok(()) => Ok(member.port),
            Err(stop) => {
                member.port.give_up();
                Err(stop)
            }
        }
    };
    members.into_iter().zip(tried).map(finish).collect()
}

/// Outcomes of messages that are computed together; none after a panic.
fn together<S, P>(stage: &mut S, members: &mut [Member<P>]) -> Vec<Result<(), Stop>>
where
    S: Stage,
    P: Outward,
    for<'a> S::Input<'a>: Deserialize<'a>,
{
    let count = members.len();
    let outcomes = guarded(|| {
        let mut outcomes = vec![Ok(()); count];
        let (mut places, mut works) = (Vec::new(), Vec::new());
        for (at, Member { body, job, port }) in members.iter_mut().enumerate() {
            match read::<S>(body, job) {
                Ok(input) => {
                    places.push(at);
                    works.push((input, port));
                }
                Err(stop) => outcomes[at] = Err(stop),
            }
        }
        let units = works.iter().map(|(input, _)| S::units(input)).sum();
        works.iter_mut().for_each(|(_, port)| port.sized(units));
        let works = works.into_iter().map(|(input, port)| Work { input, port: port as &mut dyn Port });
        for (at, outcome) in places.into_iter().zip(stage.process_together(works.collect())) {
            outcomes[at] = outcome;
        }
        Ok(outcomes)
    });
    outcomes.unwrap_or_else(|panicked| {
        tracing::warn!(?panicked, "{count} messages failed together, each is tried alone");
        Vec::new()
    })
}

/// Computes a message by itself.
fn alone<S, P>(stage: &mut S, member: &mut Member<P>) -> Result<(), Stop>
where
    S: Stage,
    P: Outward,
    for<'a> S::Input<'a>: Deserialize<'a>,
{
    let input = read::<S>(&member.body, &member.job)?;
    member.port.sized(S::units(&input));
    stage.process(input, &mut member.port)
}

/// Reads a message that came on the subject of a job.
fn read<'a, S>(body: &'a [u8], owner: &JobId) -> Result<S::Input<'a>, Stop>
where
    S: Stage,
    S::Input<'a>: Deserialize<'a>,
{
    let poison = |text| Stop::Failed(JobError::new(ErrorKind::PoisonMessage, text));
    let input: S::Input<'a> = wire::decode(body).map_err(|e| poison(format!("unreadable message: {e}")))?;
    if input.job() != Some(owner) {
        return Err(poison(format!("message of {:?} on the subject of {owner}", input.job())));
    }
    Ok(input)
}

#[cfg(test)]
mod tests;
