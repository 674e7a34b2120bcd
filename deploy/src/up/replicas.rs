//! Processes of each stage, and the devices that they compute on: what `--replicas` and `--place` say.

use config::{COMPUTING, Config, Device};
use protocol::error::StageName;

/// Settings (`section.key=value`) of what `--place` gives: `vision=cuda:0,cuda:1,audio=cuda:1`, cut at its commas.
///
/// # Errors
/// What cannot be read, with what would be.
pub fn placement(given: &[String]) -> Result<Vec<String>, String> {
    let mut placed: Vec<(StageName, Vec<Device>)> = Vec::new();
    for item in given {
        let device = match item.split_once('=') {
            Some((name, device)) => {
                placed.push((computing(name)?, Vec::new()));
                if placed.iter().filter(|(stage, _)| stage.as_str() == name.trim()).count() > 1 {
                    return Err(format!(
                        "--place: {name} is placed twice: give all its devices at once, {name}=cuda:0,cuda:1"
                    ));
                }
                device
            }
            None => item.as_str(),
        };
        let (_, devices) = placed.last_mut().ok_or(format!("--place: {item:?} is not stage=device"))?;
        devices.push(device.parse().map_err(|e| format!("--place {item}: {e}"))?);
    }
    let setting = |(stage, devices): (StageName, Vec<Device>)| {
        let named: Vec<String> = devices.iter().map(|device| format!("\"{device}\"")).collect();
        format!("placement.{stage}=[{}]", named.join(", "))
    };
    Ok(placed.into_iter().map(setting).collect())
}

/// A stage that computes on a device.
fn computing(name: &str) -> Result<StageName, String> {
    let known = || COMPUTING.map(StageName::as_str).join(", ");
    match name.trim().parse() {
        Ok(StageName::Decode) => {
            Err(format!("--place: stage-decode works on the host's processors; there are {}", known()))
        }
        Ok(stage) => Ok(stage),
        Err(_) => Err(format!("--place: no stage {:?}; there are {}", name.trim(), known())),
    }
}

/// Processes of each stage: as `--replicas` gives them (`stage=count`), else one on each of the stage's devices, else one.
///
/// # Errors
/// What cannot be read; fewer processes than devices, other than none; lists of budgets of another length.
pub fn replicas(given: &[String], config: &Config) -> Result<Vec<(StageName, usize)>, String> {
    let mut all = StageName::ALL.map(|stage| (stage, config.placement.of(stage).len().max(1))).to_vec();
    for item in given {
        let (name, count) = item.split_once('=').ok_or(format!("--replicas: {item:?} is not stage=count"))?;
        let stage: StageName = name.parse().map_err(|e| format!("--replicas: {e}"))?;
        let count: usize = count.parse().map_err(|e| format!("--replicas: {item:?}: {e}"))?;
        let devices = config.placement.of(stage);
        if count > 0 && count < devices.len() {
            let named: Vec<String> = devices.iter().map(Device::to_string).collect();
            return Err(format!(
                "--replicas {item} contradicts the placement of stage-{stage} on {}: give at least {} processes, or fewer devices",
                named.join(", "),
                devices.len()
            ));
        }
        all.retain(|(s, _)| *s != stage);
        all.push((stage, count));
    }
    for (stage, count) in &all {
        let budgets = config.placement.budgets.get(stage).map_or(*count, Vec::len);
        if *count > 0 && budgets != *count {
            return Err(format!(
                "placement.budgets.{stage} has {budgets} numbers, and stage-{stage} {count} processes: give one for each"
            ));
        }
    }
    Ok(all)
}

/// Devices on which these processes compute, each once, GPUs first.
pub fn devices(config: &Config, replicas: &[(StageName, usize)]) -> Vec<Device> {
    let computing = replicas.iter().filter(|(stage, _)| *stage != StageName::Decode);
    let each = computing.flat_map(|&(stage, count)| (0..count).map(move |i| config.device(stage, i)));
    let mut all: Vec<Device> = each.collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<String> {
        text.split(',').filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    fn placed(place: &str, counts: &str) -> Result<(Config, Vec<(StageName, usize)>), String> {
        let config = Config::load(None, [], &placement(&cut(place))?)?;
        let replicas = replicas(&cut(counts), &config)?;
        Ok((config, replicas))
    }

    #[test]
    fn a_process_on_each_device_unless_there_are_to_be_more() {
        let of = |place, counts| {
            let (config, replicas) = placed(place, counts).unwrap();
            let vision = replicas.iter().find(|(stage, _)| *stage == StageName::Vision).unwrap().1;
            (0..vision).map(|i| config.device(StageName::Vision, i).to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("", ""), "cpu");
        assert_eq!(of("vision=cuda:1,audio=cuda:1", ""), "cuda:1");
        assert_eq!(of("vision=cuda:0,cuda:1,audio=cuda", ""), "cuda:0 cuda:1");
        assert_eq!(of("vision=cpu,cpu", "audio=3"), "cpu cpu");
        assert_eq!(of("vision=cuda:0,cuda:1", "vision=3"), "cuda:0 cuda:1 cuda:0");
        assert_eq!(of("vision=cuda:0,cuda:1", "vision=0"), "", "it runs elsewhere");
        assert_eq!(of("", "vision=2"), "cpu cpu");
    }

    #[test]
    fn what_contradicts_itself_or_is_unknown_is_refused_by_its_name() {
        for (place, counts, words) in [
            ("vision=cuda:0,cuda:1", "vision=1", &["--replicas vision=1", "cuda:0, cuda:1", "at least 2"][..]),
            ("vison=cuda:0", "", &["--place", "vison", "vision, audio, fuse, llm"]),
            ("decode=cuda:0", "", &["--place", "stage-decode", "vision, audio, fuse, llm"]),
            ("vision=gpu", "", &["--place vision=gpu", "cpu, cuda and cuda:N"]),
            ("vision=cuda:0,1", "", &["--place 1", "cuda:N"]),
            ("vision=", "", &["--place vision=", "cuda:N"]),
            ("cuda:0", "", &["--place", "stage=device"]),
            ("vision=cuda:0,vision=cuda:1", "", &["vision", "twice"]),
            ("", "vision", &["--replicas", "stage=count"]),
        ] {
            let said = placed(place, counts).unwrap_err();
            assert!(words.iter().all(|word| said.contains(word)), "{place} {counts}: {said}");
        }
        let budgets = Config::load(None, [], &["placement.budgets={ vision = [1, 2] }".to_owned()]).unwrap();
        let said = replicas(&[], &budgets).unwrap_err();
        assert!(said.contains("placement.budgets.vision has 2") && said.contains("1 processes"), "{said}");
        assert!(replicas(&cut("vision=2"), &budgets).is_ok() && replicas(&cut("vision=0"), &budgets).is_ok());
    }

    #[test]
    fn devices_are_named_once_and_gpus_first() {
        let (config, replicas) = placed("vision=cpu,cuda:1,fuse=cuda:0", "audio=0").unwrap();
        assert_eq!(devices(&config, &replicas), [Device::Cuda(0), Device::Cuda(1), Device::Cpu]);
    }
}
