//! Names of all metrics: of stages, and of the gateway. Whoever counts takes them from here; dashboards and autoscalers that ask for
//! one are held against this file by the tests.

use prometheus_client::registry::{Metric as Counted, Registry, Unit};

/// Name of a metric as a query has it, but for what a histogram adds, and what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Name, with unit and `_total`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
}

impl Metric {
    /// Registers what is counted under the name: a counter where that ends in `_total`, an info where it ends in `_info`.
    pub fn register(&self, registry: &mut Registry, counted: impl Counted) {
        let name = self.name.strip_suffix("_total").or_else(|| self.name.strip_suffix("_info")).unwrap_or(self.name);
        for (ending, unit) in [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)] {
            if let Some(name) = name.strip_suffix(ending) {
                return registry.register_with_unit(name, self.help, unit, counted);
            }
        }
        registry.register(name, self.help, counted);
    }
}

const fn metric(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help }
}

/// Jobs that have ended; counted by whoever wrote the end.
pub const JOBS: Metric = metric("vidi_jobs_total", "Jobs that ended, by task and outcome");
/// The same figure from every stage-llm: a query takes the largest.
pub const JOBS_WAITING: Metric = metric("vidi_jobs_waiting", "Jobs that wait for a worker, in the whole pipeline");
/// Each stage-llm's own: a query adds them.
pub const JOBS_RUNNING: Metric = metric("vidi_jobs_running", "Jobs that this process owns");
/// Phases: `waiting`, `prefill`, `generation` and `total`.
pub const JOB_SECONDS: Metric = metric("vidi_job_seconds", "Time of a job, by phase");
/// From the owner's taking the job.
pub const FIRST_TOKEN: Metric = metric("vidi_time_to_first_token_seconds", "Time from taking a job to its first token");
/// After the first one.
pub const OUTPUT_TOKEN: Metric =
    metric("vidi_time_per_output_token_seconds", "Time of a generated token after the first");
/// Of stage-llm: a turn of its engine, whatever the number of jobs in it.
pub const BATCH_SECONDS: Metric = metric("vidi_stage_batch_seconds", "Time that a stage computed on a message");
/// Kinds: `frames`, `windows`, and `image` or `audio` with `_rows` or `_tokens`; of stage-llm `text_tokens` too.
pub const ITEMS: Metric = metric("vidi_stage_items_total", "Items that a stage made, by kind");
/// Kinds: `used`, `peak`, `reserved`, `budget`. Only of stages on a GPU.
pub const GPU_BYTES: Metric = metric("vidi_gpu_bytes", "GPU memory of a stage, by kind");
/// Places: `memory`, `disk`.
pub const KEPT_VIDEOS: Metric = metric("vidi_kept_videos", "Videos whose keys and values are kept, by place");
/// Places as of kept videos.
pub const KEPT_HITS: Metric = metric("vidi_kept_hits_total", "Answers about a video that was kept, by place");
/// Deliveries after the first.
pub const REDELIVERED: Metric = metric("vidi_redelivered_total", "Messages that another delivery had come before");
/// Messages on `dead`.
pub const DEAD: Metric = metric("vidi_dead_total", "Messages that no stage could use");
/// Always 1.
pub const BUILD_INFO: Metric = metric("vidi_build_info", "Version of this program");
/// A name that Prometheus' own clients use.
pub const RESIDENT_BYTES: Metric = metric("process_resident_memory_bytes", "Resident memory of this process");
/// Of the gateway, as all that follow.
pub const HTTP_REQUEST_SECONDS: Metric =
    metric("vidi_http_request_seconds", "Time from the head of a request to the head of its response");
/// Jobs that ended.
pub const HTTP_JOBS: Metric = metric("vidi_http_jobs_total", "Jobs that came by HTTP and have ended");
/// Jobs that have not.
pub const HTTP_IN_FLIGHT: Metric = metric("vidi_http_jobs_in_flight", "Jobs that came by HTTP and are in flight");
/// Whatever came of them.
pub const HTTP_UPLOADED: Metric =
    metric("vidi_http_upload_bytes_total", "Bytes of files that were uploaded or fetched, kept or not");
/// On disk now.
pub const HTTP_SPOOL: Metric = metric("vidi_http_spool_bytes", "Bytes of uploaded files");
/// One for each state.
pub const STAGE_STATE: Metric = metric("vidi_stage_state", "1 for the state that a stage is in, else 0");

/// All of them.
pub const ALL: [&Metric; 21] = [
    &JOBS,
    &JOBS_WAITING,
    &JOBS_RUNNING,
    &JOB_SECONDS,
    &FIRST_TOKEN,
    &OUTPUT_TOKEN,
    &BATCH_SECONDS,
    &ITEMS,
    &GPU_BYTES,
    &KEPT_VIDEOS,
    &KEPT_HITS,
    &REDELIVERED,
    &DEAD,
    &BUILD_INFO,
    &RESIDENT_BYTES,
    &HTTP_REQUEST_SECONDS,
    &HTTP_JOBS,
    &HTTP_IN_FLIGHT,
    &HTTP_UPLOADED,
    &HTTP_SPOOL,
    &STAGE_STATE,
];

/// Those of `vidi_job_seconds` and so on: what a query says of a histogram.
pub const OF_HISTOGRAM: [&str; 3] = ["_bucket", "_count", "_sum"];

/// Whether a query may ask for a name.
pub fn is_known(name: &str) -> bool {
    let of_histogram = || {
        let whole = OF_HISTOGRAM.iter().find_map(|ending| name.strip_suffix(ending));
        whole.is_some_and(|whole| whole.ends_with("_seconds") && ALL.iter().any(|metric| metric.name == whole))
    };
    let plain = ALL.iter().any(|metric| metric.name == name);
    let histogram = [JOB_SECONDS, FIRST_TOKEN, OUTPUT_TOKEN, BATCH_SECONDS, HTTP_REQUEST_SECONDS];
    (plain && !histogram.iter().any(|metric| metric.name == name)) || of_histogram()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_asks_for_series_and_a_histogram_alone_is_none() {
        for good in ["vidi_jobs_total", "vidi_job_seconds_bucket", "vidi_build_info", "vidi_gpu_bytes"] {
            assert!(is_known(good), "{good}");
        }
        for wrong in ["vidi_jobs", "vidi_job_seconds", "vidi_gpu_bytes_bucket", "vidi_made_up"] {
            assert!(!is_known(wrong), "{wrong}");
        }
    }
}
