//! Sound of a scene.

use std::f64::consts::TAU;

use compute::random::Normal;

use super::scene::{Interval, Scene, Sound};

/// Samples a second.
pub const RATE: u32 = 48_000;
/// Samples of one step, 10 ms: sounds begin and end within it.
const STEP: usize = 480;
/// Loudness of noise here for that of the third of its band that is left at the model's 16 kHz: the root of 3.
const WHOLE_BAND: f64 = 1.732_050_807_568_877_2;

/// Samples of a whole scene, one channel of 16 bits; `seed` decides its noise.
pub fn samples(scene: &Scene, seed: u64) -> Vec<i16> {
    let count = scene.seconds as usize * RATE as usize;
    // White up to its own limit: resampled from 16 kHz it would lack the highest tones that the model hears noise by.
    let hiss = |name: &str, std: f64| Normal::new(seed, name, 0.0, std * WHOLE_BAND);
    let (noise, floor) = (hiss("noise", 0.5), hiss("floor", scene.voice.floor));
    let voices: Vec<(Sound, Vec<f32>)> =
        scene.sounds.iter().map(|(sound, heard)| (*sound, switches(heard, count / STEP))).collect();
    let tone = |at: usize, hz: f64| ((at as f64 * hz / f64::from(RATE)).fract() * TAU).sin();
    let voice = &scene.voice;
    let [beep, hum, rustle] = voice.loudness;
    let sample = |at: usize| {
        let mut value = f64::from(floor.at(at as u64));
        for (sound, switches) in &voices {
            let how_much = f64::from(ramp(switches, at));
            if how_much > 0.0 {
                value += how_much
                    * match sound {
                        Sound::Beep => beep * tone(at, voice.beep_hz),
                        Sound::Hum => hum * tone(at, voice.hum_hz),
                        Sound::Noise => rustle * f64::from(noise.at(at as u64)),
                    };
            }
        }
        (value.clamp(-1.0, 1.0) * 32767.0).round() as i16
    };
    (0..count).map(sample).collect()
}

/// For each step 1 where the sound is on, else 0.
fn switches(heard: &[Interval], steps: usize) -> Vec<f32> {
    let step = |second: f64| (second * f64::from(RATE) / STEP as f64).round() as usize;
    (0..steps)
        .map(|at| if heard.iter().any(|&[from, to]| step(from) <= at && at < step(to)) { 1.0 } else { 0.0 })
        .collect()
}

/// Loudness at a sample: straight lines between the middles of steps.
fn ramp(switches: &[f32], sample: usize) -> f32 {
    let at = ((sample as f32 + 0.5) / STEP as f32 - 0.5).max(0.0);
    let low = (at as usize).min(switches.len() - 1);
    let high = (low + 1).min(switches.len() - 1);
    switches[low] + (switches[high] - switches[low]) * (at - low as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw;

    #[test]
    fn a_sound_is_as_loud_as_it_is_to_be_while_it_is_heard_and_silent_else() {
        let mut scene = draw::scene(1, 10);
        scene.voice.floor = 0.0;
        for (sound, loudness, rms) in [(Sound::Beep, 0.4, 0.4 / 2f64.sqrt()), (Sound::Noise, 0.2, 0.1 * WHOLE_BAND)] {
            scene.voice.loudness = [loudness; 3];
            scene.sounds = vec![(sound, vec![[2.0, 4.5], [7.0, 8.0]])];
            let samples = samples(&scene, 1);
            assert_eq!(samples.len(), 480_000);
            let heard = |from: f64, to: f64| {
                let part = &samples[(from * 48e3) as usize..(to * 48e3) as usize];
                (part.iter().map(|&s| (f64::from(s) / 32768.0).powi(2)).sum::<f64>() / part.len() as f64).sqrt()
            };
            for (from, to) in [(0.0, 1.98), (4.52, 6.98), (8.02, 10.0)] {
                assert_eq!(heard(from, to), 0.0, "{sound:?} from {from} to {to}");
            }
            for (from, to) in [(2.02, 4.48), (7.02, 7.98)] {
                let found = heard(from, to);
                assert!((found / rms - 1.0).abs() < 0.03, "{sound:?}: {found} from {from} to {to}, and not {rms}");
            }
        }
    }
}
