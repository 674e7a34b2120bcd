//! Pictures of a scene.
//!
//! A thing's outline is where its distance d(x, y) is 0, in coordinates x, y that run from -1 to 1 over its size.

use compute::random::Normal;

use super::scene::{SIDE, Scene, Shape, Thing};

/// Blotches along a side of the picture.
const BLOTCHES: usize = 12;
/// Half the side of a turned shape's box, in half sizes of the shape.
const BOX: f64 = 1.45;

/// Painter of one scene's pictures.
pub struct Painter<'a> {
    scene: &'a Scene,
    /// Backdrop without its grain, [height, width, 3], 0 to 1.
    base: Vec<f32>,
    grain: Normal,
}

impl<'a> Painter<'a> {
    /// Painter with the backdrop painted; `seed` decides blotches and grain.
    pub fn new(scene: &'a Scene, seed: u64) -> Self {
        let texture = Normal::new(seed, "texture", 0.0, scene.backdrop.texture);
        let [width, height] = scene.size;
        let mut base = Vec::with_capacity(width * height * 3);
        let place = |at: usize, of: usize| (at as f64 + 0.5) * SIDE / of as f64;
        for row in 0..height {
            for column in 0..width {
                base.extend(backdrop(scene, &texture, place(column, width), place(row, height)));
            }
        }
        Painter { scene, base, grain: Normal::new(seed, "grain", 0.0, scene.backdrop.grain) }
    }

    /// Picture number `index` at a time: RGB, 8 bits, row by row.
    pub fn picture(&self, index: u64, second: f64) -> Vec<u8> {
        let mut image = self.base.clone();
        if self.scene.backdrop.grain > 0.0 {
            let first = index * image.len() as u64;
            image.iter_mut().enumerate().for_each(|(i, value)| *value += self.grain.at(first + i as u64));
        }
        for thing in self.scene.things.iter().filter(|thing| thing.is_seen(second)) {
            self.paint(&mut image, thing, second);
        }
        image.into_iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round() as u8).collect()
    }

    /// Lays a thing over a picture.
    fn paint(&self, image: &mut [f32], thing: &Thing, second: f64) {
        let [width, height] = self.scene.size;
        let centre = thing.centre_at(second);
        let within = |axis: usize, pixels: usize| {
            let scale = pixels as f64 / SIDE;
            let (low, high) = (centre[axis] - BOX * thing.radius[axis], centre[axis] + BOX * thing.radius[axis]);
            ((low * scale).floor().max(0.0) as usize, ((high * scale).ceil() as usize).min(pixels))
        };
        let ((left, right), (top, bottom)) = (within(0, width), within(1, height));
        for row in top..bottom {
            let y = (row as f64 + 0.5) * SIDE / height as f64;
            for column in left..right {
                let x = (column as f64 + 0.5) * SIDE / width as f64;
                let cover = coverage(thing, centre, x, y);
                if cover > 0.0 {
                    let at = (row * width + column) * 3;
                    for (value, shade) in image[at..at + 3].iter_mut().zip(thing.shade) {
                        *value += cover * (shade - *value);
                    }
                }
            }
        }
    }
}

/// Backdrop without grain at a place of the model's square.
fn backdrop(scene: &Scene, texture: &Normal, x: f64, y: f64) -> [f32; 3] {
    let b = &scene.backdrop;
    let across = (x * b.direction.cos() + y * b.direction.sin()) / SIDE;
    let wave = (x * b.wave[0] + y * b.wave[1]).sin() * b.wave_height;
    let blotch = |channel: usize| if b.texture > 0.0 { blotch(texture, channel, x, y) } else { 0.0 };
    [0, 1, 2].map(|c| (b.first[c] + (b.second[c] - b.first[c]) * across + wave) as f32 + blotch(c))
}

/// Blotches at a place: random values on a coarse grid, interpolated.
fn blotch(texture: &Normal, channel: usize, x: f64, y: f64) -> f32 {
    let last = BLOTCHES - 1;
    let cell = |at: f64| {
        let at = (at * BLOTCHES as f64 / SIDE - 0.5).clamp(0.0, last as f64);
        let low = at as usize;
        (low, (low + 1).min(last), (at - low as f64) as f32)
    };
    let ((left, right, dx), (top, bottom, dy)) = (cell(x), cell(y));
    let value = |row: usize, column: usize| texture.at(((channel * BLOTCHES + row) * BLOTCHES + column) as u64);
    let across = |row: usize| value(row, left) + (value(row, right) - value(row, left)) * dx;
    across(top) + (across(bottom) - across(top)) * dy
}

/// Share of the pixel at (x, y) that a thing covers.
fn coverage(thing: &Thing, centre: [f64; 2], x: f64, y: f64) -> f32 {
    let [rx, ry] = thing.radius;
    let (x, y) = ((x - centre[0]) / rx, (y - centre[1]) / ry);
    let (sin, cos) = thing.turn.sin_cos();
    let (x, y) = (x * cos + y * sin, y * cos - x * sin);
    let (ax, ay) = (x.abs(), y.abs());
    let distance = match thing.kind.shape {
        Shape::Circle => x.hypot(y) - 1.0,
        Shape::Square => ax.max(ay) - 0.88,
        Shape::Triangle => (ax * 0.88 - y * 0.475 - 0.475).max(y - 0.85),
        Shape::Cross => (ax - 1.0).max(ay - 0.33).min((ax - 0.33).max(ay - 1.0)),
    };
    // Soft at the edge, about a pixel wide.
    (0.5 - distance * rx.min(ry) * 0.7).clamp(0.0, 1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw;

    #[test]
    fn a_thing_is_painted_while_it_is_seen_and_nothing_else_changes() {
        let mut scene = draw::scene(1, 12);
        scene.backdrop.grain = 0.0;
        scene.things.truncate(1);
        let thing = &mut scene.things[0];
        thing.seen = vec![[3.0, 7.0]];
        (thing.shade, thing.sway) = ([1.0, 0.0, 0.5], 0.0);
        let centre = thing.centre;
        let painter = Painter::new(&scene, 1);
        let [width, height] = scene.size;
        let at =
            |x: f64, y: f64| ((y / SIDE * height as f64) as usize * width + (x / SIDE * width as f64) as usize) * 3;
        let (before, during, after) = (painter.picture(0, 2.9), painter.picture(1, 3.0), painter.picture(2, 7.0));
        assert_eq!(before, after);
        let middle = at(centre[0], centre[1]);
        assert_eq!(&during[middle..middle + 3], &[255, 0, 128]);
        let differ = before.iter().zip(&during).filter(|(a, b)| a != b).count() as f64 / before.len() as f64;
        let most = scene.things[0].radius.iter().product::<f64>() * 4.0 * BOX * BOX / (SIDE * SIDE);
        assert!(differ > 0.005 && differ < most, "{differ} of the picture, at most {most}");
    }
}
