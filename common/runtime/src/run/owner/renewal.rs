//! Renewal of a look into a file for a job that gave way to others: the look goes on only while somebody asks for it, and the
//! job itself waits in its queue meanwhile.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bus::Bus;
use crate::bus::events::EventLog;
use protocol::message::JobId;

/// Time between two looks whether the job has ended.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A file, and the job that waits for it.
type Wait = (String, JobId);

/// What jobs of this process wait for that gave way, each with the instance that looks into the file, or did.
static LOOKED_INTO: Mutex<BTreeMap<Wait, String>> = Mutex::new(BTreeMap::new());

fn looked_into() -> MutexGuard<'static, BTreeMap<Wait, String>> {
    LOOKED_INTO.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The instance that looks into a file for a job that waits, or knows it by now: another one would begin anew.
pub fn instance(video: &str) -> Option<String> {
    looked_into().iter().find(|((of, _), _)| of == video).map(|(_, instance)| instance.clone())
}

/// Notes which instance looks into a file.
pub fn note(video: &str, instance: &str) {
    for (_, known) in looked_into().iter_mut().filter(|((of, _), _)| of == video) {
        instance.clone_into(known);
    }
}

/// Asks on for a file that `instance` looks into, as `asks` does until it is known; the instance is remembered until the job has
/// ended.
pub fn begin(bus: &Bus, job: &JobId, video: &str, instance: String, asks: impl Future<Output = ()> + Send + 'static) {
    let wait = (video.to_owned(), job.clone());
    if looked_into().insert(wait.clone(), instance).is_some() {
        return;
    }
    let (bus, (video, job)) = (bus.clone(), wait);
    tokio::spawn(async move {
        let asks = async {
            asks.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = asks => {}
            () = ended(&bus, &job) => {}
        }
        looked_into().remove(&(video, job));
    });
}

/// Waits until a job has ended, or nothing is known of it any more.
async fn ended(bus: &Bus, job: &JobId) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let log = EventLog::open(bus, job).await;
        if log.last().is_none() || log.ended().is_some() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_next_is_told_which_instance_looks_into_the_file_until_no_job_waits_for_it() {
        let (file, jobs) = ("/films/renewed.ts", ["a", "b"].map(|name| JobId::new(name).unwrap()));
        assert_eq!(instance(file), None);
        for job in &jobs {
            looked_into().insert((file.to_owned(), job.clone()), "first".to_owned());
        }
        note("/films/other.ts", "third");
        assert_eq!(instance(file).as_deref(), Some("first"));
        note(file, "second");
        for job in jobs {
            assert_eq!(instance(file).as_deref(), Some("second"));
            looked_into().remove(&(file.to_owned(), job));
        }
        assert_eq!(instance(file), None);
    }
}
