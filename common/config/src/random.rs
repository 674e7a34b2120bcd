//! Weights that are made up while a stage loads: which size of demo model.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A size of demo model with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 1.7 MB: four layers, a window of 16. Answers in milliseconds.
    Tiny,
    /// 29 MB: the head sizes of Vidi 1.5 9B (256, 72 and 64), otherwise small.
    Realdims,
    /// 21 GB: every name, shape and type of Vidi 1.5 9B.
    NineB,
    /// 2.1 MB: `tiny` in the layout of Vidi 7B.
    SevenBTiny,
    /// 29 MB: the head sizes of Vidi 7B (128, 72 and 64), otherwise small.
    SevenBRealdims,
    /// 17 GB: every name, shape and type of Vidi 7B.
    SevenB,
}

impl Size {
    /// All of them: those of Vidi 1.5 9B, then those of Vidi 7B, each the smallest first.
    pub const ALL: [Size; 6] =
        [Size::Tiny, Size::Realdims, Size::NineB, Size::SevenBTiny, Size::SevenBRealdims, Size::SevenB];

    /// The name as it is written on command lines and in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Size::Tiny => "tiny",
            Size::Realdims => "realdims",
            Size::NineB => "9b",
            Size::SevenBTiny => "7b-tiny",
            Size::SevenBRealdims => "7b-realdims",
            Size::SevenB => "7b",
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Size::ALL
            .into_iter()
            .find(|size| size.as_str() == text)
            .ok_or_else(|| format!("no size {text:?}; there are {}", Size::ALL.map(Size::as_str).join(", ")))
    }
}

/// A demo model without its files, of the default seed: written as `random:SIZE`, or `random` for the size of Vidi 1.5 9B.
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
            Some(("random", size)) => size.parse::<Size>(),
            _ => Err(String::new()),
        };
        size.map(|size| RandomWeights { size }).map_err(|_| {
            let known = Size::ALL.map(|size| RandomWeights { size }.to_string());
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
        write!(f, "random:{}", self.size)
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
    use crate::Config;

    #[test]
    fn random_weights_are_read_as_they_are_written_and_an_unknown_size_is_told_the_known_ones() {
        for size in Size::ALL {
            let weights = RandomWeights { size };
            assert_eq!(weights.to_string().parse(), Ok(weights));
        }
        assert_eq!("random".parse(), Ok(RandomWeights { size: Size::NineB }));
        for wrong in ["", "tiny", "random:", "random:huge", "random:Tiny", "Random", "zeros:tiny"] {
            let said = RandomWeights::from_str(wrong).unwrap_err();
            let known =
                ["random:tiny", "random:realdims", "random:9b", "random:7b-tiny", "random:7b-realdims", "random:7b"];
            assert!(known.iter().all(|s| said.contains(s)), "{said}");
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
