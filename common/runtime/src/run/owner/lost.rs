//! Whether the broker has lost work on a job since the job asked for it. What it keeps in memory ends with it, and so does all
//! that it keeps in files with their disk.

use crate::bus::Bus;
use crate::bus::streams::Counted;
use crate::subject::StreamName;

/// Streams that hold work on a job, the tokens last.
const WORK: [StreamName; 4] = [StreamName::Frames, StreamName::Audio, StreamName::Features, StreamName::Tokens];

/// Streams of work as they were when it was asked for.
pub struct Work {
    /// How far each had counted; none where the broker did not say.
    counted: Option<[Counted; WORK.len()]>,
    /// Connections that had been lost by then.
    reconnects: u64,
}

impl Work {
    /// Looks at the streams before work is asked for.
    pub async fn look(bus: &Bus) -> Self {
        // First: a connection that is lost meanwhile is one to look again after.
        let reconnects = bus.reconnects();
        Work { counted: counted(bus).await, reconnects }
    }

    /// What is lost since the last look, now that the broker and all its streams are there again.
    pub async fn lost(&mut self, bus: &Bus) -> Lost {
        if bus.reconnects() == self.reconnects || !bus.is_connected() {
            return Lost::Nothing;
        }
        let now = Work::look(bus).await;
        let Some(after) = now.counted else { return Lost::Nothing };
        // What nobody knows is asked for again: that costs work, and no answer.
        let Some(before) = std::mem::replace(self, now).counted else { return Lost::Tokens };
        let anew: Vec<bool> = before.iter().zip(after).map(|(&before, after)| after.anew_since(before)).collect();
        match anew[..] {
            [.., true] => Lost::Tokens,
            _ if anew.contains(&true) => Lost::OnItsWay,
            _ => Lost::Nothing,
        }
    }
}

/// What the broker has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nothing, as far as is known.
    Nothing,
    /// Work that was on its way to become tokens.
    OnItsWay,
    /// Tokens, and perhaps what was on its way.
    Tokens,
}

/// How far the streams have counted; none while one of them is not there, or the broker does not say.
async fn counted(bus: &Bus) -> Option<[Counted; WORK.len()]> {
    let [frames, audio, features, tokens] = WORK.map(|stream| bus.counted(stream));
    let (frames, audio, features, tokens) = tokio::try_join!(frames, audio, features, tokens).ok()?;
    Some([frames, audio, features, tokens])
}
