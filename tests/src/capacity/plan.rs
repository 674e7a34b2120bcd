//! Tables of what a load needs.

use anyhow::ensure;
use protocol::error::StageName;
use serde::Serialize;

use super::model::{Traffic, Video, WIDTHS_9B, Work, tokens};
use super::needs::{Needs, TARGET};
use super::scenario::body_bytes;
use super::times::{Footage, Times};

/// GPUs of the hosts that are counted.
const GPUS_PER_HOST: [u64; 3] = [1, 4, 8];

/// Figures of one load.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Videos an hour.
    pub per_hour: f64,
    /// What they need.
    pub needs: Needs,
    /// Hosts with 1, 4 and 8 GPUs.
    pub hosts: [u64; 3],
}

/// Table of one kind of video on one kind of GPU.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    video: Video,
    times: Times,
    footage: Footage,
    traffic: Traffic,
    work: Work,
    tokens: u64,
    /// One row for each load.
    pub rows: Vec<Row>,
}

impl Plan {
    /// Plans these loads, with messages of `message_bytes` and `batch_frames` frames.
    ///
    /// # Errors
    /// A video that is too short; one that no GPU of this kind has memory for; a load of nothing.
    pub fn of(
        loads: &[f64],
        video: Video,
        times: &Times,
        footage: Footage,
        (batch_frames, message_bytes): (usize, usize),
    ) -> anyhow::Result<Self> {
        let (plan, body) = (video.plan()?, body_bytes(message_bytes));
        let tokens = tokens(&plan);
        ensure!(
            times.workers_per_gpu(tokens) > 0,
            "{}: {tokens} tokens of {} s do not fit beside the encoders: ask about a shorter video, or take 4 bits (h200-q4)",
            times.name,
            video.seconds
        );
        let row = |&per_hour: &f64| {
            ensure!(per_hour.is_finite() && per_hour > 0.0, "a load is over 0 videos an hour, not {per_hour}");
            let needs = Needs::of(per_hour, &video, times, &footage, (batch_frames, body))?;
            let hosts = GPUS_PER_HOST.map(|gpus| needs.gpus.div_ceil(gpus));
            Ok(Row { per_hour, needs, hosts })
        };
        Ok(Plan {
            rows: loads.iter().map(row).collect::<anyhow::Result<_>>()?,
            traffic: Traffic::of(&plan, &WIDTHS_9B, (batch_frames, body)),
            work: Work::of(&video, times, &footage)?,
            video,
            times: times.clone(),
            footage,
            tokens,
        })
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (work, traffic) = (&self.work, &self.traffic);
        writeln!(
            f,
            "{} s at {} frame a second, {} tokens and an answer of {}; {}; decoding {}",
            self.video.seconds,
            self.video.fps,
            self.tokens,
            self.video.answer_tokens,
            self.times.name,
            self.footage.name
        )?;
        writeln!(
            f,
            "  seconds a video: decode {:.2} ({:.2} CPU), vision {:.3}, audio {:.3}, fuse {:.3}, language model {:.3}; of a GPU {:.3}; its \
             owner holds it {:.2}; {} stage-llm a GPU",
            work.decode_s,
            work.decode_cpu_s,
            work.vision_s,
            work.audio_s,
            work.fuse_s,
            work.llm_s,
            work.gpu_s(),
            work.held_s,
            self.times.workers_per_gpu(self.tokens)
        )?;
        writeln!(
            f,
            "  MB a video: frames {:.1}, audio {:.1}, features {:.1}, tokens {:.1}; all {:.1} in {} messages",
            traffic.frames.bytes as f64 / 1e6,
            traffic.audio.bytes as f64 / 1e6,
            traffic.features.bytes as f64 / 1e6,
            traffic.tokens.bytes as f64 / 1e6,
            traffic.all().bytes as f64 / 1e6,
            traffic.all().messages
        )?;
        writeln!(f, "  at {:.0} % of the time of each:", TARGET * 100.0)?;
        writeln!(
            f,
            "| videos an hour | decode, vision, audio, fuse, llm | cores to decode | GPUs by time | by memory | GPUs | hosts of 1, 4, 8 | \
             bus MB/s in | messages/s | tokens reserved, GB |"
        )?;
        writeln!(f, "| ---: | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |")?;
        for Row { per_hour, needs, hosts } in &self.rows {
            let of = |stage| needs.replicas.iter().find(|&&(s, _)| s == stage).map_or(0, |&(_, n)| n);
            writeln!(
                f,
                "| {per_hour} | {} | {:.1} | {:.3} | {} | {} | {} | {:.2} | {:.1} | {:.2} |",
                StageName::ALL.map(|stage| of(stage).to_string()).join(", "),
                needs.decode_cores,
                needs.gpus_by_time,
                needs.gpus_by_memory,
                needs.gpus,
                hosts.map(|n| n.to_string()).join(", "),
                needs.bus_bytes_per_s / 1e6,
                needs.messages_per_s,
                needs.reserved_bytes / 1e9,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_video_that_no_gpu_has_memory_for_and_a_load_of_nothing_are_refused_with_the_figures() {
        let of = |name: &str, seconds, load: f64| {
            let (times, video) = (Times::named(name).unwrap(), Video { seconds, fps: 1, answer_tokens: 64 });
            Plan::of(&[load], video, &times, Footage::named("1080p").unwrap(), (8, 4 << 20))
                .map(|plan| plan.to_string())
        };
        let refused = of("h100-fp8", 20_000, 1.0).unwrap_err().to_string();
        assert!(refused.contains("h100-fp8") && refused.contains("20000 s"), "{refused}");
        assert!(of("h200-fp8", 300, 0.0).is_err() && of("h200-fp8", 0, 1.0).is_err());
        let table = of("h200-fp8", 300, 100.0).unwrap();
        assert!(table.contains("| 100 | 1, 1, 1, 1, 2 |"), "{table}");
    }
}
