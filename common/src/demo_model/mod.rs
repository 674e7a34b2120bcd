//! The demo model: random weights in the layout of Vidi 1.5, for trials and tests where the real checkpoint is not at hand.
//!
//! Tensor names, shapes and types are those of the real checkpoint, also of the tensors that inference does not use; the
//! weights are random, spread so that activations stay near 1 and the greedy answer moves. `vidi demo-model` writes it to
//! disk; stages with [`RandomWeights`] make it while they load. The reading order:
//!
//! * [`size`]: the dimensions of a checkpoint, and the named sizes;
//! * [`tensors`]: every tensor of a size, with its values, which are [`crate::random`]'s: the same on every machine;
//! * [`config`] for `config.json`;
//! * [`tokenizer`]: `tokenizer.json` and `tokenizer_config.json`.

pub mod config;
pub mod size;
pub mod tensors;
pub mod tokenizer;

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use size::{Dims, Size};

/// The seed to use when none is given: of 1 to 40, the one whose tiny model has the most different tokens in its answers.
pub const DEFAULT_SEED: u64 = 34;

/// A demo model without its files, of [`DEFAULT_SEED`]: written as `random:SIZE`, or `random` for the size of Vidi 1.5 9B.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RandomWeights {
    /// Its dimensions.
    pub size: Size,
}

impl FromStr for RandomWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = match text.split_once(':') {
            None if text == "random" => Ok(Size::NineB),
            Some(("random", size)) => Size::from_str(size, false),
            _ => Err(String::new()),
        };
        size.map(|size| RandomWeights { size }).map_err(|_| {
            let known: Vec<String> =
                Size::value_variants().iter().map(|&s| RandomWeights { size: s }.to_string()).collect();
            format!("{text:?} is none of random, {}", known.join(", "))
        })
    }
}

impl TryFrom<String> for RandomWeights {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for RandomWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.size.to_possible_value().expect("no size is hidden. This is a bug.");
        write!(f, "random:{}", size.get_name())
    }
}

impl From<RandomWeights> for String {
    fn from(weights: RandomWeights) -> Self {
        weights.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn random_weights_are_read_as_they_are_written_and_an_unknown_size_is_told_the_known_ones() {
        for &size in Size::value_variants() {
            let weights = RandomWeights { size };
            assert_eq!(weights.to_string().parse(), Ok(weights));
        }
        assert_eq!("random".parse(), Ok(RandomWeights { size: Size::NineB }));
        for wrong in ["", "tiny", "random:", "random:huge", "random:Tiny", "Random", "zeros:tiny"] {
            let said = RandomWeights::from_str(wrong).unwrap_err();
            assert!(["random:tiny", "random:realdims", "random:9b"].iter().all(|s| said.contains(s)), "{said}");
        }
    }

    #[test]
    fn a_configuration_hands_random_weights_on_and_takes_none_beside_a_directory() {
        let load = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
            Config::load(None, [], &set)
        };
        let config = load(&["model.weights=random:tiny"]).unwrap();
        assert_eq!(toml::from_str::<Config>(&config.to_toml()), Ok(config.clone()));
        assert_eq!(config.model.name(), "random:tiny");
        assert!(config.model.warning().unwrap().contains("mean nothing"));
        assert!(load(&["model.dir=/m"]).unwrap().model.warning().is_none());
        let said = load(&["model.dir=/m", "model.weights=random:tiny"]).unwrap_err();
        assert!(said.contains("/m") && said.contains("random:tiny"), "{said}");
    }
}
