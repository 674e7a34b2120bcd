//! Questions about a scene that its truth answers, in the words that the demo model knows.

use super::scene::{Colour, Interval, Kind, Scene, Shape, Sound, union};
use super::truth::{Answer, Question};

/// Most intervals that an answer names.
const MOST_INTERVALS: usize = 3;

/// Every kind of question that a scene has an answer to.
pub fn questions(scene: &Scene) -> Vec<Question> {
    [times(scene), absent(scene), words(scene)].concat()
}

/// When is it seen, or heard?
fn times(scene: &Scene) -> Vec<Question> {
    let mut found: Vec<Question> =
        scene.things.iter().map(|thing| when(format!("a {}", thing.kind.name()), thing.seen.clone())).collect();
    // What only one thing has is asked for above.
    let of = |has: &dyn Fn(Kind) -> bool| {
        let things: Vec<_> = scene.things.iter().filter(|thing| has(thing.kind)).collect();
        let seen = union(things.iter().flat_map(|thing| thing.seen.iter().copied()));
        (things.len() > 1 && seen.len() <= MOST_INTERVALS).then_some(seen)
    };
    for shape in Shape::ALL {
        found.extend(of(&|kind| kind.shape == shape).map(|seen| when(format!("a {}", shape.name()), seen)));
    }
    for colour in Colour::ALL {
        found.extend(of(&|kind| kind.colour == colour).map(|seen| when(format!("something {}", colour.name()), seen)));
    }
    found.extend(scene.sounds.iter().map(|(sound, heard)| when(sound.name().to_owned(), heard.clone())));
    found
}

/// When is it seen, or heard? Never: a thing that shares the first one's colour, and a sound.
fn absent(scene: &Scene) -> Vec<Question> {
    let sound = Sound::ALL.into_iter().find(|&sound| scene.sounds.iter().all(|(heard, _)| *heard != sound));
    let never = |what: String| when(what, Vec::new());
    let thing = missing(scene).map(|kind| never(format!("a {}", kind.name())));
    thing.into_iter().chain(sound.map(|sound| never(sound.name().to_owned()))).collect()
}

/// What, and how many?
fn words(scene: &Scene) -> Vec<Question> {
    let mut found = Vec::new();
    for thing in &scene.things {
        let Kind { colour, shape } = thing.kind;
        let alone = |has: &dyn Fn(Kind) -> bool| scene.things.iter().filter(|other| has(other.kind)).count() == 1;
        if alone(&|kind| kind.shape == shape) {
            found.push(say(format!("What colour is the {}?", shape.name()), colour.name()));
        }
        if alone(&|kind| kind.colour == colour) {
            found.push(say(format!("What shape is the {} object?", colour.name()), shape.name()));
        }
    }
    let there = scene.things.first().map(|thing| (thing.kind, "yes"));
    for (kind, answer) in there.into_iter().chain(missing(scene).map(|kind| (kind, "no"))) {
        found.push(say(format!("Is there a {}?", kind.name()), answer));
    }
    if let [] | [_] = scene.sounds[..] {
        let heard = scene.sounds.first().map_or("none", |(sound, _)| sound.name());
        found.push(say("What sound is heard?".to_owned(), heard));
    }
    found.push(say("How many objects are there?".to_owned(), &scene.things.len().to_string()));
    found
}

/// A kind that is nowhere in the scene although its colour is.
fn missing(scene: &Scene) -> Option<Kind> {
    let colour = scene.things.first()?.kind.colour;
    let kinds = Shape::ALL.into_iter().map(|shape| Kind { colour, shape });
    kinds.into_iter().find(|kind| scene.things.iter().all(|thing| thing.kind != *kind))
}

fn when(query: String, intervals: Vec<Interval>) -> Question {
    Question { task: "retrieval".to_owned(), query, answer: Answer::Ranges(intervals) }
}

fn say(query: String, answer: &str) -> Question {
    Question { task: "qa".to_owned(), query, answer: Answer::Text(answer.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw;

    #[test]
    fn answers_are_those_of_the_scene() {
        let mut scene = draw::scene(1, 20);
        let thing = |colour, shape, seen: &[Interval]| {
            let mut thing = draw::scene(1, 20).things.remove(0);
            (thing.kind, thing.seen) = (Kind { colour, shape }, seen.to_vec());
            thing
        };
        scene.things = vec![
            thing(Colour::Red, Shape::Circle, &[[2.0, 5.0], [9.0, 12.0]]),
            thing(Colour::Red, Shape::Cross, &[[4.0, 6.0]]),
        ];
        scene.sounds = vec![(Sound::Hum, vec![[1.5, 3.0]])];
        let asked = questions(&scene);
        let answer = |query: &str| &asked.iter().find(|q| q.query == query).expect(query).answer;
        let ranges = |ranges: &[Interval]| Answer::Ranges(ranges.to_vec());
        let text = |text: &str| Answer::Text(text.to_owned());
        assert_eq!(answer("a red circle"), &ranges(&[[2.0, 5.0], [9.0, 12.0]]));
        assert_eq!(answer("something red"), &ranges(&[[2.0, 6.0], [9.0, 12.0]]));
        assert_eq!(answer("a hum"), &ranges(&[[1.5, 3.0]]));
        assert_eq!(answer("a red square"), &ranges(&[]));
        assert_eq!(answer("a beep"), &ranges(&[]));
        assert_eq!(answer("What colour is the circle?"), &text("red"));
        assert_eq!(answer("Is there a red circle?"), &text("yes"));
        assert_eq!(answer("Is there a red square?"), &text("no"));
        assert_eq!(answer("What sound is heard?"), &text("a hum"));
        assert_eq!(answer("How many objects are there?"), &text("2"));
        // Two things are red: the question has no answer.
        assert!(asked.iter().all(|q| q.query != "What shape is the red object?"));
    }
}
