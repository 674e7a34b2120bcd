//! Packets of a file, and how long they last where ffprobe does not know when all of them are shown.

use std::path::Path;

use crate::support::reference::ffprobe;

/// Packet as ffprobe has it.
pub struct Packet {
    /// Seconds at which it is shown; none where ffprobe does not know.
    pts: Option<f64>,
    /// Seconds at which it is decoded.
    dts: Option<f64>,
    length_s: f64,
}

/// Packets of a track.
pub fn packets(path: &Path, track: &str) -> Vec<Packet> {
    let of = format!("-select_streams {track} -show_entries packet=pts_time,dts_time,duration_time");
    let all = ffprobe(path, &of);
    let packet = |[pts, dts, length]: &[String; 3]| Packet {
        pts: pts.parse().ok(),
        dts: dts.parse().ok(),
        length_s: length.parse().unwrap_or(0.0),
    };
    all.as_chunks::<3>().0.iter().map(packet).collect()
}

/// Seconds from the first of some packets to the end of the last, by the times at which they are shown. Where ffprobe does not know that of a
/// picture that others refer to, it is when the next of these is decoded, and that of the last one behind all others.
pub fn spanned_s(tracks: &[&[Packet]]) -> f64 {
    let bounds = tracks.iter().filter_map(|packets| {
        let mut next = None;
        let (mut bounds, mut untimed_s) = (None::<[f64; 2]>, 0.0);
        for packet in packets.iter().rev() {
            let decoded = packet.dts;
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
