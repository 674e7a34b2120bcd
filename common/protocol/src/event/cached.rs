//! Where the keys and values of a job's video were.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where a video's keys and values were when its question came: `"memory"`, `"disk"` or `false` on the wire. Messages of before
/// 2026-11-27 have `true` for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cached {
    /// Nowhere: they are computed for this question.
    #[default]
    No,
    /// In the memory of the worker that answers.
    Memory,
    /// On a disk, from which the worker reads them.
    Disk,
}

impl Cached {
    /// Whether they were there already, so that no other stage works for the question.
    pub fn is_known(self) -> bool {
        self != Cached::No
    }

    /// Its name where it is one.
    pub fn place(self) -> Option<&'static str> {
        match self {
            Cached::No => None,
            Cached::Memory => Some("memory"),
            Cached::Disk => Some("disk"),
        }
    }
}

impl Serialize for Cached {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.place() {
            None => serializer.serialize_bool(false),
            Some(place) => serializer.serialize_str(place),
        }
    }
}

/// What stands on the wire.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Known(bool),
    Place(Place),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Memory,
    Disk,
}

impl<'de> Deserialize<'de> for Cached {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Known(false) => Cached::No,
            Written::Known(true) | Written::Place(Place::Memory) => Cached::Memory,
            Written::Place(Place::Disk) => Cached::Disk,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_false_or_a_place_on_the_wire_and_an_old_true_is_memory() {
        let json = [Cached::No, Cached::Memory, Cached::Disk].map(|cached| serde_json::to_string(&cached).unwrap());
        assert_eq!(json, ["false", "\"memory\"", "\"disk\""]);
        let read = |text: &str| serde_json::from_str::<Cached>(text).ok();
        assert_eq!(["false", "true", "\"disk\""].map(read), [Cached::No, Cached::Memory, Cached::Disk].map(Some));
        assert_eq!(["\"tape\"", "1", "null"].map(read), [None; 3]);
        for cached in [Cached::No, Cached::Memory, Cached::Disk] {
            let packed = rmp_serde::to_vec_named(&cached).unwrap();
            assert_eq!(rmp_serde::from_slice::<Cached>(&packed).unwrap(), cached);
        }
        assert_eq!(rmp_serde::from_slice::<Cached>(&rmp_serde::to_vec(&true).unwrap()).unwrap(), Cached::Memory);
    }
}
