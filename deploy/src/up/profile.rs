//! Named configurations for kinds of machines: the lowest layer, below everything that a user sets.

/// Name and text of every profile in deploy/profiles/.
const PROFILES: [(&str, &str); 4] = [
    ("4090-shared", include_str!("../../profiles/4090-shared.toml")),
    ("4090", include_str!("../../profiles/4090.toml")),
    ("h200", include_str!("../../profiles/h200.toml")),
    ("cpu-demo", include_str!("../../profiles/cpu-demo.toml")),
];

/// The text of a profile.
///
/// # Errors
/// An unknown name, with the known ones.
pub fn text(name: &str) -> Result<&'static str, String> {
    PROFILES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text).ok_or_else(|| {
        let names: Vec<&str> = PROFILES.iter().map(|(n, _)| *n).collect();
        format!("unknown profile {name:?}: the profiles are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Config;

    #[test]
    fn every_profile_is_a_configuration() {
        for (name, text) in PROFILES {
            Config::layered(Some(text), None, [], &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn what_a_user_says_wins_over_the_profile() {
        let said = ["llm.kv=q8".to_owned()];
        let config = Config::layered(Some(text("4090-shared").unwrap()), None, [], &said).unwrap();
        assert_eq!(config.llm.kv, config::KvPrecision::Q8);
        assert_eq!(config.llm.weights, config::WeightFormat::Q4);
        assert!(text("4080").unwrap_err().contains("4090-shared"));
    }
}
