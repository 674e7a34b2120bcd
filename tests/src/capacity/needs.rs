//! How many of each stage, of GPUs and of bytes a load needs.

use protocol::error::StageName;
use serde::Serialize;

use super::model::{Traffic, Video, WIDTHS_9B, Work, tokens};
use super::times::{Footage, Times};

/// Part of its time for which a replica is planned to work: the rest takes bursts.
pub const TARGET: f64 = 0.7;

/// What a load needs, at [`TARGET`] of the time of each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Needs {
    /// Replicas of each stage, in the order of [`StageName::ALL`].
    pub replicas: Vec<(StageName, u64)>,
    /// CPU cores for decoding.
    pub decode_cores: f64,
    /// GPUs by what they compute.
    pub gpus_by_time: f64,
    /// GPUs by the memory of the stage-llm that hold jobs.
    pub gpus_by_memory: u64,
    /// GPUs: the larger of the two, whole.
    pub gpus: u64,
    /// Bytes a second that the broker takes in; as many go out.
    pub bus_bytes_per_s: f64,
    /// Messages a second of the four streams.
    pub messages_per_s: f64,
    /// Bytes of `bus.token_bytes` that the jobs in work reserve.
    pub reserved_bytes: f64,
}

impl Needs {
    /// What so many videos an hour need; `cut` is as for [`Traffic::of`].
    ///
    /// # Errors
    /// A video too short to be asked about.
    pub fn of(
        per_hour: f64,
        video: &Video,
        times: &Times,
        footage: &Footage,
        cut: (usize, usize),
    ) -> anyhow::Result<Self> {
        let (plan, work) = (video.plan()?, Work::of(video, times, footage)?);
        let (rate, traffic) = (per_hour / 3600.0, Traffic::of(&plan, &WIDTHS_9B, cut));
        let needed = |seconds: f64| (rate * seconds / TARGET).ceil().max(1.0) as u64;
        let replicas: Vec<_> = StageName::ALL.iter().map(|&stage| (stage, needed(work.busy_s(stage)))).collect();
        let workers = needed(work.held_s);
        let gpus_by_memory = match times.workers_per_gpu(tokens(&plan)) {
            0 => u64::MAX,
            n => workers.div_ceil(n),
        };
        let gpus_by_time = rate * work.gpu_s() / TARGET;
        Ok(Needs {
            replicas,
            decode_cores: rate * work.decode_cpu_s / TARGET,
            gpus_by_time,
            gpus_by_memory,
            gpus: (gpus_by_time.ceil() as u64).max(gpus_by_memory).max(1),
            bus_bytes_per_s: rate * traffic.bus_bytes() as f64,
            messages_per_s: rate * traffic.all().messages as f64,
            // An eighth more than its tokens take is reserved for each job (`Bus::token_stream_bytes`).
            reserved_bytes: workers as f64 * tokens(&plan) as f64 * WIDTHS_9B.token_bytes() as f64 * 1.125,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_grow_with_the_load_and_never_fall_below_one_of_each() {
        let minutes = Video { seconds: 300, fps: 1, answer_tokens: 64 };
        let (times, footage) = (Times::named("h200-fp8").unwrap(), Footage::named("1080p").unwrap());
        let of = |per_hour| Needs::of(per_hour, &minutes, &times, &footage, (8, 4 << 20)).unwrap();
        let (one, many) = (of(1.0), of(10_000.0));
        assert!(one.replicas.iter().all(|&(_, n)| n == 1) && one.gpus == 1, "{one:?}");
        assert!(many.gpus as f64 >= many.gpus_by_time && many.gpus >= many.gpus_by_memory, "{many:?}");
        assert!((many.bus_bytes_per_s / one.bus_bytes_per_s - 10_000.0).abs() < 1e-3);
        let work = Work::of(&minutes, &times, &footage).unwrap();
        let llm = many.replicas.iter().find(|(stage, _)| *stage == StageName::Llm).unwrap().1;
        assert_eq!(llm, (10_000.0 / 3600.0 * work.held_s / TARGET).ceil() as u64);
    }
}
