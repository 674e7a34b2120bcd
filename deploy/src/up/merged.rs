//! The merged configuration that stages read: files of each pipeline, which go with it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use config::{Config, Device};
use protocol::error::StageName;

use super::private;

/// Beginning and end of the files' names; the process id of who wrote them stands between.
const NAME: (&str, &str) = ("stages-", ".toml");

/// Process of a stage, and what it reads.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its stage.
    pub stage: StageName,
    /// Device that it computes on.
    pub device: Device,
    /// File of its configuration.
    pub config: PathBuf,
}

/// Merged configurations on disk: one for all processes, or one for each kind of them where they are placed. They may hold a
/// password: nobody else may read them, and they are removed at the end.
#[derive(Debug)]
pub struct Merged {
    files: Vec<PathBuf>,
    processes: Vec<Process>,
}

impl Merged {
    /// Writes the configuration of each process into a directory that is this process's alone; what earlier ones have left
    /// there goes.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn write(config: &Config, replicas: &[(StageName, usize)], dir: &Path) -> anyhow::Result<Self> {
        let named = || format!("{}", dir.display());
        std::fs::create_dir_all(dir).with_context(named)?;
        for entry in std::fs::read_dir(dir).with_context(named)?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(NAME.0) && name.ends_with(NAME.1) {
                std::fs::remove_file(entry.path()).with_context(|| format!("{}", entry.path().display()))?;
            }
        }
        let mut merged = Merged { files: Vec::new(), processes: Vec::new() };
        let mut texts: Vec<String> = Vec::new();
        let each = replicas.iter().flat_map(|&(stage, count)| (0..count).map(move |replica| (stage, replica)));
        for (nth, (stage, replica)) in each.enumerate() {
            let mut own = config.of_replica(stage, replica);
            own.metrics = config.metrics.nth(nth).map_err(anyhow::Error::msg)?;
            let text = own.exposed_toml();
            let at = match texts.iter().position(|written| *written == text) {
                Some(at) => at,
                None => {
                    let place = if texts.is_empty() { String::new() } else { format!("-{}", texts.len()) };
                    let path = dir.join(format!("{}{}{place}{}", NAME.0, std::process::id(), NAME.1));
                    // Listed before it is there: it goes with the others if one of them cannot be written.
                    merged.files.push(path.clone());
                    private::write(&path, text.as_bytes())?;
                    texts.push(text);
                    texts.len() - 1
                }
            };
            let (device, config) = (config.device(stage, replica), merged.files[at].clone());
            merged.processes.push(Process { stage, device, config });
        }
        Ok(merged)
    }

    /// The processes, and what each of them reads.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        for file in &self.files {
            // With a temporary directory it may have gone already.
            let _ = std::fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn processes_that_are_alike_read_one_file_and_each_reads_what_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let plain = Merged::write(&Config::default(), &StageName::ALL.map(|stage| (stage, 2)), dir.path()).unwrap();
        assert_eq!((plain.processes().len(), files(dir.path())), (10, 1));
        let set =
            ["placement.vision=cuda:0,cuda:1", "placement.audio=cuda:1", "placement.llm=cuda:0", "bus.password=geheim"];
        let config = Config::load(None, [], &set.map(str::to_owned)).unwrap();
        let replicas = [(StageName::Vision, 3), (StageName::Audio, 1), (StageName::Decode, 1), (StageName::Llm, 0)];
        let placed = Merged::write(&config, &replicas, dir.path()).unwrap();
        let read = |process: &Process| Config::merged(&process.config).unwrap();
        let devices: Vec<String> = placed.processes().iter().map(|process| read(process).compute.device).collect();
        assert_eq!(devices, ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cpu"]);
        assert!(placed.processes().iter().all(|process| read(process).bus.password.exposed() == "geheim"));
        assert_eq!(files(dir.path()), 3, "those of the pipeline before are gone");
        drop(placed);
        assert_eq!(files(dir.path()), 0);
    }

    #[test]
    fn each_process_tells_its_metrics_at_a_port_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let listening = |port: &str| {
            let config = Config::load(None, [], &[format!("metrics.listen=127.0.0.1:{port}")]).unwrap();
            let merged = Merged::write(&config, &[(StageName::Decode, 1), (StageName::Vision, 2)], dir.path())?;
            let own = |process: &Process| Config::merged(&process.config).unwrap().metrics.listen;
            anyhow::Ok(merged.processes().iter().map(own).collect::<Vec<_>>())
        };
        assert_eq!(listening("9464").unwrap(), ["127.0.0.1:9464", "127.0.0.1:9465", "127.0.0.1:9466"]);
        assert_eq!(listening("0").unwrap(), ["127.0.0.1:0"; 3]);
        assert!(listening("65534").unwrap_err().to_string().contains("metrics.listen"));
    }
}
