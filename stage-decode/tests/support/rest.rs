//! What is there of a file that was cut short, beside the file before the cut: packets that are there as a whole, and of each track at
//! most one that the cut goes through.

use std::path::Path;

use super::super::support::reference::ffprobe;

/// Packet as ffprobe has it.
pub struct Packet {
    /// Seconds at which it is shown; none where ffprobe does not know.
    pts: Option<f64>,
    /// When it is decoded, and how many bytes it has: what tells one from another.
    key: (String, u64),
    length_s: f64,
}

/// Packets of a track.
pub fn packets(path: &Path, track: &str) -> Vec<Packet> {
    let of = format!("-select_streams {track} -show_entries packet=pts_time,dts_time,duration_time,size");
    let all = ffprobe(path, &of);
    let packet = |[pts, dts, length, size]: &[String; 4]| Packet {
        pts: pts.parse().ok(),
        key: (dts.clone(), size.parse().expect("a size")),
        length_s: length.parse().unwrap_or(0.0),
    };
    all.as_chunks::<4>().0.iter().map(packet).collect()
}

/// Seconds from the first of some packets to the end of the last, by the times at which they are shown. Where ffprobe does not know that of a
/// picture that others refer to, it is when the next of these is decoded, and that of the last one behind all others.
pub fn spanned_s(tracks: &[&[Packet]]) -> f64 {
    let bounds = tracks.iter().filter_map(|packets| {
        let mut next = None;
        let (mut bounds, mut untimed_s) = (None::<[f64; 2]>, 0.0);
        for packet in packets.iter().rev() {
            let decoded = packet.key.0.parse().ok();
            match packet.pts.or(next) {
                Some(at) => {
                    let [start, end] = bounds.unwrap_or([at; 2]);
                    bounds = Some([start.min(at), end.max(at + packet.length_s)]);
                }
                None => untimed_s += packet.length_s,
            }
            // A picture that no other refers to is shown when it is decoded.
            next = if packet.pts.is_some() && packet.pts == decoded { next } else { decoded };
        }
        bounds.map(|[start, end]| [start, end + untimed_s])
    });
    let [start, end] = bounds.reduce(|all, next| [all[0].min(next[0]), all[1].max(next[1])]).expect("packets");
    end - start
}

/// Packets of a track of a file that was cut.
pub struct Rest {
    pub packets: Vec<Packet>,
    /// How many of them are there as a whole: all, or all but the last.
    pub whole: usize,
}

impl Rest {
    /// The packets of a track that are left of those of the file before the cut.
    pub fn of(path: &Path, before: &Path, track: &str) -> Self {
        let [all, packets] = [before, path].map(|path| packets(path, track));
        let whole = packets.iter().zip(&all).take_while(|(left, before)| left.key == before.key).count();
        assert!(whole > 0 && packets.len() - whole <= 1, "{whole} of {} packets of {track} are whole", packets.len());
        if let (Some(cut), Some(before)) = (packets.get(whole), all.get(whole)) {
            assert!(cut.key.1 < before.key.1, "the last packet of {track} is shorter than it was, or whole");
        }
        Rest { packets, whole }
    }

    pub fn whole(&self) -> &[Packet] {
        &self.packets[..self.whole]
    }

    /// Number of the picture that ffmpeg makes of the packet that the cut goes through; none where there is none.
    pub fn cut_picture(&self, path: &Path) -> Option<usize> {
        let cut = self.packets.get(self.whole)?.key.1.to_string();
        let sizes = ffprobe(path, "-select_streams v:0 -show_entries frame=pkt_size");
        sizes.iter().rposition(|size| *size == cut)
    }

    /// Samples at 16 kHz that ffmpeg makes of the packet of sound that the cut goes through, of ADPCM of the block.
    pub fn samples_of_cut(&self, path: &Path) -> usize {
        let Some(cut) = self.packets.get(self.whole) else { return 0 };
        let from = cut.pts.expect("the time of a sound") - 1e-3;
        let of = |entries: &str| ffprobe(path, &format!("-select_streams a:0 -show_entries {entries}"));
        let frames = of("frame=best_effort_timestamp_time,nb_samples");
        let frames = frames.as_chunks::<2>().0;
        let is_of_cut = frames.iter().any(|[at, _]| at.parse::<f64>().is_ok_and(|at| at >= from));
        let samples = frames.last().filter(|_| is_of_cut).map_or(0, |[_, samples]| samples.parse::<usize>().unwrap());
        let rate: usize = of("stream=sample_rate")[0].parse().unwrap();
        (samples * 16_000).div_ceil(rate)
    }
}
