//! Scenes drawn at random: how many things, which, where, when, on what, with which sounds.
//!
//! The distribution is that of the scenes which the demo model was trained on; the numbers are stated in its training code.

use std::f64::consts::TAU;

use super::chance::Chance;
use super::scene::{Backdrop, Colour, Interval, Kind, SIDE, Scene, Shape, Sound, Thing, Voice};

/// Most things of a scene.
const MOST_THINGS: usize = 4;
/// Attempts to find a place for a thing, each for a smaller one.
const PLACES: i32 = 40;
/// Attempts to divide a video into intervals.
const DIVISIONS: usize = 50;
/// Picture sizes, wide ones most often: square, 4:3 and 16:9.
const SIZES: [[usize; 2]; 7] = [[384, 384], [384, 384], [512, 384], [512, 384], [640, 360], [640, 360], [640, 360]];

/// The scene of a seed.
pub fn scene(seed: u64, seconds: u32) -> Scene {
    let mut chance = Chance::new(seed);
    let size = chance.one_of(&SIZES);
    let aspect = size[1] as f64 / size[0] as f64;
    let things = things(&mut chance, aspect, seconds);
    let sounds = sounds(&mut chance, seconds);
    let backdrop = backdrop(&mut chance);
    let voice = voice(&mut chance, !sounds.is_empty());
    Scene { seconds, size, things, backdrop, voice, sounds }
}

/// One thing at least.
fn things(chance: &mut Chance, aspect: f64, seconds: u32) -> Vec<Thing> {
    loop {
        let mut things: Vec<Thing> = Vec::new();
        let count = 1 + chance.below(MOST_THINGS);
        for kind in kinds(chance, count) {
            things.extend(thing(chance, kind, aspect, &things, seconds));
        }
        if !things.is_empty() {
            return things;
        }
    }
}

/// Different kinds; half the time the first two share colour or shape, so that the other one decides.
fn kinds(chance: &mut Chance, count: usize) -> Vec<Kind> {
    let kind = |i: usize| Kind { colour: Colour::ALL[i / Shape::ALL.len()], shape: Shape::ALL[i % Shape::ALL.len()] };
    let drawn = chance.some_of(Colour::ALL.len() * Shape::ALL.len(), count);
    let mut kinds: Vec<Kind> = drawn.into_iter().map(kind).collect();
    if count > 1 && chance.happens(0.5) {
        let first = kinds[0];
        let other = if chance.happens(0.5) {
            let others: Vec<Shape> = Shape::ALL.into_iter().filter(|&s| s != first.shape).collect();
            Kind { shape: chance.one_of(&others), ..first }
        } else {
            let others: Vec<Colour> = Colour::ALL.into_iter().filter(|&c| c != first.colour).collect();
            Kind { colour: chance.one_of(&others), ..first }
        };
        if !kinds.contains(&other) {
            kinds[1] = other;
        }
    }
    kinds
}

/// A thing that never touches the others; none if there is no place for it.
fn thing(chance: &mut Chance, kind: Kind, aspect: f64, others: &[Thing], seconds: u32) -> Option<Thing> {
    let (centre, radius, sway) = place(chance, aspect, others)?;
    let count = match chance.happens(0.6) {
        true => 1,
        false if chance.happens(0.8) => 2,
        false => 3,
    };
    let least = (0.05 * f64::from(seconds)).ceil().max(1.0) as usize;
    let seen = intervals(chance, count, seconds as usize, least);
    Some(Thing {
        kind,
        shade: shade(chance, kind.colour),
        centre,
        radius,
        sway,
        phase: chance.between(0.0, TAU),
        speed: chance.between(0.1, 0.6),
        heading: chance.between(0.0, TAU),
        turn: chance.between(-0.25, 0.25),
        seen: seen.into_iter().map(|part| part.map(|second| second as f64)).collect(),
    })
}

/// Centre, half sizes and sway of a thing beside the others.
fn place(chance: &mut Chance, aspect: f64, others: &[Thing]) -> Option<([f64; 2], [f64; 2], f64)> {
    (0..PLACES).find_map(|attempt| {
        let high = chance.between(34.0, 76.0) * 0.98_f64.powi(attempt);
        let radius = [(high * aspect).max(18.0), high];
        let sway = if chance.happens(0.5) { chance.between(0.0, 28.0) } else { 0.0 };
        let reach = radius.map(|r| r + sway);
        let centre = reach.map(|r| chance.between(r + 4.0, SIDE - r - 4.0));
        let apart = |other: &Thing| {
            (0..2).any(|axis| (centre[axis] - other.centre[axis]).abs() > reach[axis] + other.reach()[axis] + 4.0)
        };
        others.iter().all(apart).then_some((centre, radius, sway))
    })
}

/// Colour as painted, near the usual one or the pure one.
fn shade(chance: &mut Chance, colour: Colour) -> [f32; 3] {
    let near = match chance.happens(0.3) {
        true if colour == Colour::Green && chance.happens(0.5) => [0.0, 160.0, 0.0],
        true => colour.pure(),
        false => colour.usual(),
    };
    near.map(|v| (chance.normal(v, 10.0) / 255.0).clamp(0.0, 1.0) as f32)
}

/// `count` intervals (fewer if they do not fit) in whole steps of 0 to `whole`, each and each gap at least `least` long.
fn intervals(chance: &mut Chance, count: usize, whole: usize, least: usize) -> Vec<[usize; 2]> {
    for count in (1..=count).rev() {
        for _ in 0..DIVISIONS {
            let mut cuts = chance.some_of(whole + 1, 2 * count);
            cuts.sort_unstable();
            let fits = cuts.len() == 2 * count && cuts.windows(2).all(|pair| pair[1] - pair[0] >= least);
            if fits && cuts[1] - cuts[0] < whole {
                return cuts.chunks_exact(2).map(|part| [part[0], part[1]]).collect();
            }
        }
    }
    vec![[0, least.max(whole / 2)]]
}

/// One sound or two; none in 15 % of the scenes.
fn sounds(chance: &mut Chance, seconds: u32) -> Vec<(Sound, Vec<Interval>)> {
    if !chance.happens(0.85) {
        return Vec::new();
    }
    let count = chance.one_of(&[1, 1, 1, 2]);
    let drawn = chance.some_of(Sound::ALL.len(), count);
    let tenths = seconds as usize * 10;
    let heard = |kind: usize| {
        let count = if chance.happens(0.65) { 1 } else { 2 };
        let parts = intervals(chance, count, tenths, (tenths / 25).max(4));
        (Sound::ALL[kind], parts.into_iter().map(|part| part.map(|tenth| tenth as f64 / 10.0)).collect())
    };
    drawn.into_iter().map(heard).collect()
}

/// Darker than most things; of one colour in 30 %.
fn backdrop(chance: &mut Chance) -> Backdrop {
    let tint = chance.between(0.0, 0.22);
    let colour = |chance: &mut Chance| {
        let grey = chance.between(0.02, 0.55);
        [0; 3].map(|_| (grey + chance.between(-0.5, 0.5) * tint).clamp(0.0, 0.65))
    };
    let first = colour(chance);
    let second = if chance.happens(0.3) { first } else { colour(chance) };
    let mut sometimes = |probability: f64, most: f64| {
        if chance.happens(probability) { chance.between(0.0, most) } else { 0.0 }
    };
    let (wave_height, texture, grain) = (sometimes(0.3, 0.10), sometimes(0.4, 0.11), sometimes(0.5, 0.08));
    let direction = chance.between(0.0, TAU);
    let wave = [0; 2].map(|_| chance.between(-0.15, 0.15));
    Backdrop { first, second, direction, wave, wave_height, texture, grain }
}

/// No sound track only where nothing is to be heard.
fn voice(chance: &mut Chance, audible: bool) -> Voice {
    let floor = if chance.happens(0.4) { 0.0 } else { 10f64.powf(chance.between(-4.5, -2.3)) };
    Voice {
        beep_hz: chance.between(800.0, 1250.0),
        hum_hz: chance.between(110.0, 260.0),
        loudness: [chance.between(0.08, 0.6), chance.between(0.15, 0.6), chance.between(0.05, 0.4)],
        floor,
        audible: audible || chance.happens(0.5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_scene_and_another_seed_another() {
        assert_eq!(scene(5, 20), scene(5, 20));
        assert_ne!(scene(5, 20), scene(6, 20));
    }

    #[test]
    fn things_stay_in_the_picture_and_apart_and_are_of_different_kinds() {
        for seed in 0..200 {
            let scene = scene(seed, 20);
            for (i, a) in scene.things.iter().enumerate() {
                for axis in 0..2 {
                    let (low, high) = (a.centre[axis] - a.reach()[axis], a.centre[axis] + a.reach()[axis]);
                    assert!(low >= 0.0 && high <= SIDE, "seed {seed}: {low} to {high}");
                }
                for b in &scene.things[i + 1..] {
                    assert_ne!(a.kind, b.kind, "seed {seed}");
                    let gap = |axis: usize| (a.centre[axis] - b.centre[axis]).abs() - a.reach()[axis] - b.reach()[axis];
                    assert!(gap(0) > 0.0 || gap(1) > 0.0, "seed {seed}: {} on {}", a.kind.name(), b.kind.name());
                }
            }
        }
    }

    #[test]
    fn scenes_have_few_and_many_things_silence_and_things_that_come_back() {
        let scenes: Vec<Scene> = (0..200).map(|seed| scene(seed, 30)).collect();
        let share = |is: &dyn Fn(&Scene) -> bool| scenes.iter().filter(|s| is(s)).count() as f64 / scenes.len() as f64;
        let alone = share(&|s| s.things.len() == 1);
        let silent = share(&|s| s.sounds.is_empty());
        let returning = share(&|s| s.things.iter().any(|t| t.seen.len() > 1));
        assert!((0.15..0.40).contains(&alone), "one thing in {alone}");
        assert!((0.08..0.23).contains(&silent), "silence in {silent}");
        assert!((0.45..0.85).contains(&returning), "things that come back in {returning}");
        let parts = scenes.iter().flat_map(|s| &s.things).flat_map(|t| &t.seen);
        assert!(parts.into_iter().all(|&[from, to]| 0.0 <= from && to - from >= 2.0 && to <= 30.0));
    }
}
