//! A scene: everything about a video except its grain.
//!
//! Positions and sizes are in the model's own square of 384 x 384, into which a video of any shape is squashed; times are
//! seconds. The same scenes, drawn in the same way, are what the demo model was trained on.

use serde::{Deserialize, Serialize};

/// Side of the model's square.
pub const SIDE: f64 = 384.0;

/// Time from its first number up to its second, seconds.
pub type Interval = [f64; 2];

/// Intervals joined where they overlap or touch, in order.
pub fn union(intervals: impl IntoIterator<Item = Interval>) -> Vec<Interval> {
    let mut sorted: Vec<Interval> = intervals.into_iter().filter(|[from, to]| from < to).collect();
    sorted.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let mut joined: Vec<Interval> = Vec::new();
    for [from, to] in sorted {
        match joined.last_mut() {
            Some(last) if from <= last[1] => last[1] = last[1].max(to),
            _ => joined.push([from, to]),
        }
    }
    joined
}

/// Colour with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// 225, 35, 35.
    Red,
    /// 35, 170, 55.
    Green,
    /// 40, 70, 230.
    Blue,
    /// 235, 215, 40.
    Yellow,
    /// 150, 45, 180.
    Purple,
    /// 245, 245, 245.
    White,
}

impl Colour {
    /// All colours.
    pub const ALL: [Colour; 6] =
        [Colour::Red, Colour::Green, Colour::Blue, Colour::Yellow, Colour::Purple, Colour::White];

    /// Its name in questions and answers.
    pub fn name(self) -> &'static str {
        match self {
            Colour::Red => "red",
            Colour::Green => "green",
            Colour::Blue => "blue",
            Colour::Yellow => "yellow",
            Colour::Purple => "purple",
            Colour::White => "white",
        }
    }

    /// Red, green and blue that it is near, 0 to 255.
    pub fn usual(self) -> [f64; 3] {
        match self {
            Colour::Red => [225.0, 35.0, 35.0],
            Colour::Green => [35.0, 170.0, 55.0],
            Colour::Blue => [40.0, 70.0, 230.0],
            Colour::Yellow => [235.0, 215.0, 40.0],
            Colour::Purple => [150.0, 45.0, 180.0],
            Colour::White => [245.0, 245.0, 245.0],
        }
    }

    /// Its purest form, 0 to 255.
    pub fn pure(self) -> [f64; 3] {
        match self {
            Colour::Red => [255.0, 0.0, 0.0],
            Colour::Green => [0.0, 255.0, 0.0],
            Colour::Blue => [0.0, 0.0, 255.0],
            Colour::Yellow => [255.0, 255.0, 0.0],
            Colour::Purple => [150.0, 0.0, 180.0],
            Colour::White => [255.0, 255.0, 255.0],
        }
    }
}

/// Shape with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Round.
    Circle,
    /// Four equal sides.
    Square,
    /// Standing on a side.
    Triangle,
    /// Two bars.
    Cross,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Shape; 4] = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Cross];

    /// Its name in questions and answers.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Circle => "circle",
            Shape::Square => "square",
            Shape::Triangle => "triangle",
            Shape::Cross => "cross",
        }
    }
}

/// Sound with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sound {
    /// High tone.
    #[serde(rename = "a beep")]
    Beep,
    /// Low tone.
    #[serde(rename = "a hum")]
    Hum,
    /// White noise.
    #[serde(rename = "noise")]
    Noise,
}

impl Sound {
    /// All sounds.
    pub const ALL: [Sound; 3] = [Sound::Beep, Sound::Hum, Sound::Noise];

    /// Its name in questions and answers.
    pub fn name(self) -> &'static str {
        match self {
            Sound::Beep => "a beep",
            Sound::Hum => "a hum",
            Sound::Noise => "noise",
        }
    }
}

/// What kind of thing: no two things of a scene are of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its colour.
    pub colour: Colour,
    /// Its shape.
    pub shape: Shape,
}

impl Kind {
    /// Colour and shape, as in `red circle`.
    pub fn name(self) -> String {
        format!("{} {}", self.colour.name(), self.shape.name())
    }
}

/// A shape that comes and goes; its centre sways along a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Thing {
    /// What it is.
    pub kind: Kind,
    /// Its colour as painted, 0 to 1.
    pub shade: [f32; 3],
    /// Middle of the line that its centre sways along.
    pub centre: [f64; 2],
    /// Half its width and half its height.
    pub radius: [f64; 2],
    /// Half the length of that line.
    pub sway: f64,
    /// Where on it the thing begins, radians.
    pub phase: f64,
    /// Radians a second.
    pub speed: f64,
    /// Direction of the line, radians.
    pub heading: f64,
    /// Angle by which the shape is turned, radians.
    pub turn: f64,
    /// When it is seen: whole seconds, in order.
    pub seen: Vec<Interval>,
}

impl Thing {
    /// Half width and half height of all that it may cover.
    pub fn reach(&self) -> [f64; 2] {
        self.radius.map(|r| r + self.sway)
    }

    /// Its centre at a time.
    pub fn centre_at(&self, second: f64) -> [f64; 2] {
        let along = self.sway * (self.speed * second + self.phase).sin();
        [self.centre[0] + along * self.heading.cos(), self.centre[1] + along * self.heading.sin()]
    }

    /// Whether it is seen at a time.
    pub fn is_seen(&self, second: f64) -> bool {
        self.seen.iter().any(|&[from, to]| from <= second && second < to)
    }
}

/// What is behind the things.
#[derive(Clone, Debug, PartialEq)]
pub struct Backdrop {
    /// Colour at the corner that the gradient begins at, 0 to 1.
    pub first: [f64; 3],
    /// Colour that it runs to.
    pub second: [f64; 3],
    /// Direction of the gradient, radians.
    pub direction: f64,
    /// Radians per pixel along x and y of a wave of light and dark.
    pub wave: [f64; 2],
    /// Height of the wave; 0 for none.
    pub wave_height: f64,
    /// Strength of blotches; 0 for none.
    pub texture: f64,
    /// Strength of grain, which changes with each picture; 0 for none.
    pub grain: f64,
}

/// How sounds sound.
#[derive(Clone, Debug, PartialEq)]
pub struct Voice {
    /// Pitch of the beep, Hz.
    pub beep_hz: f64,
    /// Pitch of the hum, Hz.
    pub hum_hz: f64,
    /// Loudness of beep, hum and noise.
    pub loudness: [f64; 3],
    /// Noise under everything; 0 for none.
    pub floor: f64,
    /// Whether there is a sound track at all.
    pub audible: bool,
}

/// One video.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Length, seconds.
    pub seconds: u32,
    /// Width and height of the picture.
    pub size: [usize; 2],
    /// What comes and goes.
    pub things: Vec<Thing>,
    /// What is behind it.
    pub backdrop: Backdrop,
    /// How its sounds sound.
    pub voice: Voice,
    /// Which sounds are heard, and when (in tenths of a second).
    pub sounds: Vec<(Sound, Vec<Interval>)>,
}
