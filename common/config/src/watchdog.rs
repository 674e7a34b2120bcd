//! Section `watchdog`: when an engine counts as hung.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use protocol::error::StageName;

/// Section `watchdog`: the longest time that a stage computes without a step, an output or a look at the bus. A process
/// whose engine takes longer says so and ends with status 1; `vidi up` starts it again, its message goes to another
/// worker, and fails its job when that was so `bus.max_deliver` times. The defaults are for a slow CPU, the profiles' for
/// their GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchdogConfig {
    /// Seconds that a step of any size may take.
    pub step_s: f64,
    /// Seconds more for each frame and each window of 30 s of sound that stage-decode is asked for.
    pub decode_s: f64,
    /// Seconds more for each frame of a message to stage-vision.
    pub vision_s: f64,
    /// Seconds more for each window of 30 s of sound of a message to stage-audio.
    pub audio_s: f64,
    /// Seconds more for each thousand rows of a message to stage-fuse.
    pub fuse_s: f64,
    /// Seconds more for each thousand tokens that pass the layers of stage-llm together.
    pub llm_s: f64,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        WatchdogConfig { step_s: 60.0, decode_s: 0.1, vision_s: 30.0, audio_s: 120.0, fuse_s: 10.0, llm_s: 1000.0 }
    }
}

impl WatchdogConfig {
    /// Longest time of a step of a stage on so many units of work: frames and windows for stage-decode, stage-vision and
    /// stage-audio, rows for stage-fuse, tokens for stage-llm.
    pub fn limit(&self, stage: StageName, units: u64) -> Duration {
        let each = match stage {
            StageName::Decode => self.decode_s,
            StageName::Vision => self.vision_s,
            StageName::Audio => self.audio_s,
            StageName::Fuse => self.fuse_s / 1000.0,
            StageName::Llm => self.llm_s / 1000.0,
        };
        Duration::try_from_secs_f64(self.step_s + each * units as f64).unwrap_or(Duration::MAX)
    }

    /// Refuses figures that no step can keep to.
    ///
    /// # Errors
    /// The key, and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let WatchdogConfig { step_s, decode_s, vision_s, audio_s, fuse_s, llm_s } = *self;
        if step_s.is_nan() || step_s < 1.0 {
            return Err(format!("watchdog.step_s is at least 1, not {step_s}"));
        }
        let units = [("decode", decode_s), ("vision", vision_s), ("audio", audio_s), ("fuse", fuse_s), ("llm", llm_s)];
        match units.into_iter().find(|(_, seconds)| seconds.is_nan() || *seconds < 0.0) {
            Some((stage, seconds)) => Err(format!("watchdog.{stage}_s is at least 0, not {seconds}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_grows_with_the_work() {
        let config = WatchdogConfig::default();
        for stage in StageName::ALL {
            assert_eq!(config.limit(stage, 0), Duration::from_secs(60), "{stage}");
            assert!(config.limit(stage, 16) > config.limit(stage, 8), "{stage}");
        }
        assert_eq!(config.limit(StageName::Vision, 8), Duration::from_secs(60 + 8 * 30));
        assert_eq!(config.limit(StageName::Llm, 4096), Duration::from_secs_f64(60.0 + 4096.0));
    }

    #[test]
    fn what_is_no_time_is_refused_by_its_key() {
        for (wrong, key) in [
            (WatchdogConfig { step_s: 0.0, ..Default::default() }, "watchdog.step_s"),
            (WatchdogConfig { step_s: f64::NAN, ..Default::default() }, "watchdog.step_s"),
            (WatchdogConfig { audio_s: -1.0, ..Default::default() }, "watchdog.audio_s"),
        ] {
            assert!(wrong.check().is_err_and(|text| text.contains(key)), "{key}");
        }
        assert!(WatchdogConfig::default().check().is_ok());
    }
}
