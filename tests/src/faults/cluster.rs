//! Faults of a cluster of three servers: each killed in turn, one stopped, two of three down.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use deploy::up::supervisor::RESTARTING;
use protocol::message::JobRequest;
use runtime::subject::StreamName;

use super::load::{self, Load, true_setup};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::cluster::{ClusterRig, SERVERS};
use crate::dice::Dice;
use crate::harness::Setup;

/// Longest time until a client knows that its job is not taken: what a publish waits for its acknowledgement, and some more.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
/// Time that a server stands still: longer than a publish waits for its acknowledgement, and about as long as the others wait
/// before they elect another leader.
const STOPPED: Duration = Duration::from_secs(8);

/// An election takes longer than `bus.ack_wait_s` here, so each delivers what is in flight once more, to another worker. Of 100
/// jobs one may well be about at five of them; the limit has cases of its own.
fn cluster_setup(scale: &Scale) -> Setup {
    let mut setup = Setup { replicas: "llm=2".to_owned(), ..true_setup(scale) };
    setup.set.push("bus.max_deliver=100".to_owned());
    setup
}

/// Jobs that were submitted to a cluster, some before a fault and some while it lasts.
struct Jobs<'a> {
    load: &'a Load,
    name: &'static str,
    requests: Vec<JobRequest>,
    all: usize,
}

impl Jobs<'_> {
    /// Submits some more, up to the number of all.
    async fn submit(&mut self, cluster: &ClusterRig, some: usize) -> anyhow::Result<()> {
        for _ in 0..some.min(self.all - self.requests.len()) {
            let number = self.requests.len();
            let request = self.load.request(&format!("{}-{number}", self.name), number);
            load::submit(&cluster.rig.bus, &request).await?;
            self.requests.push(request);
        }
        Ok(())
    }

    /// Submits the rest and checks that each is answered once, and that no stage died.
    async fn check(mut self, cluster: &ClusterRig) -> anyhow::Result<()> {
        self.submit(cluster, self.all).await?;
        self.load.check(&cluster.rig, &self.requests).await?;
        let restarts = cluster.rig.log().matches(RESTARTING).count();
        ensure!(restarts == 0, "{restarts} stages had to be started again; {}", look::tail(&cluster.rig));
        Ok(())
    }
}

/// Each server killed in turn while jobs run, and started again some time later; the leader of each stream is among them.
pub async fn each_killed(scale: &Scale) -> Row {
    let expected = "every job answered truly, as in an undisturbed run, one terminal event each, nothing left in the streams; \
                    all stages there without a restart";
    let name = "each server of a cluster killed in turn".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(90.0 + scale.jobs as f64 * 3.0) };
    case.run(async {
        let mut cluster = ClusterRig::start(cluster_setup(scale)).await?;
        let load = Load::new(&cluster.rig).await?;
        let mut jobs = Jobs { load: &load, name: "each", requests: Vec::new(), all: scale.jobs };
        jobs.submit(&cluster, scale.jobs / 2).await?;
        let mut dice = Dice::new(scale.seed);
        let rounds = (scale.jobs / 30).clamp(1, 3);
        let (mut kills, mut lost_leaders) = (0, BTreeSet::new());
        while kills < rounds * SERVERS || lost_leaders.len() < StreamName::ALL.len() {
            ensure!(kills < 4 * rounds * SERVERS, "only the leaders of {lost_leaders:?} were killed");
            let server = kills % SERVERS;
            tokio::time::sleep(dice.pause(200, 1500)).await;
            lost_leaders
                .extend(cluster.led_by(server).await?.iter().map(|stream| stream.on(cluster.rig.bus.subjects())));
            cluster.kill(server).await?;
            kills += 1;
            jobs.submit(&cluster, (scale.jobs / (4 * SERVERS * rounds)).max(1)).await?;
            tokio::time::sleep(dice.pause(500, 4000)).await;
            cluster.restart(server).await?;
            cluster.well().await.with_context(|| format!("kill {kills}, of server {server}"))?;
        }
        jobs.check(&cluster).await?;
        let leaders = lost_leaders.len();
        let injected = format!(
            "{kills} kills of nats-server over {} jobs, the leaders of {leaders} streams among them",
            scale.jobs
        );
        Ok(Seen { injected, observed: format!("{} right answers, streams empty", scale.jobs), seconds: None })
    })
    .await
}

/// SIGSTOP of the server that leads a stream, for 8 s, several times.
pub async fn one_stopped(scale: &Scale) -> Row {
    let expected = "every job answered truly, as in an undisturbed run, one terminal event each, nothing left in the streams; \
                    all stages there without a restart";
    let name = "a server of a cluster stopped for 8 s".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(120.0 + scale.jobs as f64 * 3.0) };
    case.run(async {
        let mut cluster = ClusterRig::start(cluster_setup(scale)).await?;
        let load = Load::new(&cluster.rig).await?;
        let mut jobs = Jobs { load: &load, name: "stopped", requests: Vec::new(), all: scale.jobs };
        jobs.submit(&cluster, scale.jobs / 2).await?;
        let mut dice = Dice::new(scale.seed);
        let times = (scale.jobs / 4).clamp(2, 5);
        // Events first: there the order of writes counts most.
        let leaders =
            [StreamName::Events, StreamName::Line, StreamName::Capacity, StreamName::Jobs, StreamName::Events];
        for (time, stream) in leaders.into_iter().take(times).enumerate() {
            tokio::time::sleep(dice.pause(200, 1500)).await;
            let server = cluster.leader(stream).await?;
            cluster.stop_for(server, STOPPED).await?;
            jobs.submit(&cluster, scale.jobs / (2 * times)).await?;
            cluster.well().await.with_context(|| format!("stop {time}, of server {server}"))?;
        }
        jobs.check(&cluster).await?;
        let injected = format!("SIGSTOP for 8 s of a stream's leader, {times} times over {} jobs", scale.jobs);
        Ok(Seen { injected, observed: format!("{} right answers, streams empty", scale.jobs), seconds: None })
    })
    .await
}

/// SIGKILL of two of three servers while jobs run, and both started again.
pub async fn two_down(scale: &Scale) -> Row {
    let expected = "meanwhile no job is accepted, and who submits one hears so, or that nobody answers, within 10 s; once two servers are there every \
                    accepted job is answered truly, one terminal event each; all stages there without a restart";
    let name = "two of three servers of a cluster down".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(120.0 + scale.jobs as f64 * 2.5) };
    case.run(async {
        let mut cluster = ClusterRig::start(cluster_setup(scale)).await?;
        let load = Load::new(&cluster.rig).await?;
        let mut dice = Dice::new(scale.seed);
        // Longer than worker_patience_s twice, at full size.
        let down = Duration::from_secs(if scale.jobs >= 50 { 45 } else { 8 });
        let requests = load.submit(&cluster.rig.bus, "quorum", scale.jobs).await?;
        tokio::time::sleep(dice.pause(500, 2000)).await;
        let survivor = dice.below(SERVERS);
        for server in (0..SERVERS).filter(|&server| server != survivor) {
            cluster.kill(server).await?;
        }
        let refused = submit_in_vain(&cluster, &load, down).await?;
        for server in (0..SERVERS).filter(|&server| server != survivor) {
            cluster.restart(server).await?;
        }
        cluster.well().await?;
        let again = Instant::now();
        for request in &requests {
            cluster.rig.events(&request.job).await?;
        }
        let took = again.elapsed();
        // One whose client heard nothing in time may be in the log of the server that was left: it is accepted late, or never.
        let mut late = 0;
        for (request, no_answer) in &refused {
            let events = client::events_so_far(&cluster.rig.bus, &request.job).await;
            match (events.is_empty(), no_answer) {
                (true, _) => {}
                (false, true) => {
                    late += 1;
                    cluster.rig.events(&request.job).await?;
                    load.check_answer(&cluster.rig, request).await?;
                }
                (false, false) => bail!("{} was refused, and accepted all the same: {events:?}", request.job),
            }
        }
        load.check(&cluster.rig, &requests).await?;
        for request in &requests {
            ensure!(cluster.ends(request).await == 1, "{} has not one end", request.job);
        }
        let restarts = cluster.rig.log().matches(RESTARTING).count();
        ensure!(restarts == 0, "{restarts} stages had to be started again; {}", look::tail(&cluster.rig));
        let injected = format!(
            "two of three servers killed for {:.0} s over {} jobs, {} submitted meanwhile",
            down.as_secs_f64(),
            scale.jobs,
            refused.len()
        );
        let observed = format!(
            "none accepted meanwhile ({late} of those without an answer later); {} right answers, the last one {:.1} s after \
             every stream had its leader again",
            scale.jobs,
            took.as_secs_f64()
        );
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}

/// Submits jobs for a time in which the broker takes none. Each client is told so, or that no answer came in time: which of them depends on
/// the server that is left, which may not notice for a minute that it is alone. What was submitted, and whether its client heard nothing
/// rather than no.
async fn submit_in_vain(cluster: &ClusterRig, load: &Load, time: Duration) -> anyhow::Result<Vec<(JobRequest, bool)>> {
    let until = Instant::now() + time;
    let mut refused: Vec<(JobRequest, bool)> = Vec::new();
    while refused.is_empty() || Instant::now() < until {
        let request = load.request(&format!("vain-{}", refused.len()), 0);
        let asked = Instant::now();
        let outcome = tokio::time::timeout(REFUSED_WITHIN, client::submit(&cluster.rig.bus, &request)).await;
        let Err(error) = outcome.with_context(|| format!("{} has no answer after {REFUSED_WITHIN:?}", request.job))?
        else {
            bail!("{} was accepted after {:?}", request.job, asked.elapsed());
        };
        let said = format!("{error:#}");
        let no_answer = said.contains("no answer in time");
        ensure!(no_answer || said.contains("the job is not submitted"), "{}: {said}", request.job);
        refused.push((request, no_answer));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(refused)
}
