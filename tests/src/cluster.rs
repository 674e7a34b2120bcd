//! A cluster of three current nats-servers on loopback, each with a store of its own, and a pipeline on it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::up::broker::{self, Broker};
use protocol::message::JobRequest;
use runtime::bus::Bus;
use runtime::subject::StreamName;
use tempfile::TempDir;

use crate::harness::{Rig, Setup, signal};

/// Servers of a cluster.
pub const SERVERS: usize = 3;
/// Streams that are held by all of them where `bus.replicas` is 3.
pub const HELD_BY_ALL: [StreamName; 5] =
    [StreamName::Jobs, StreamName::Line, StreamName::Events, StreamName::Dead, StreamName::Capacity];
/// Longest time until a cluster has a leader, or a server that was away has caught up.
const WELL_WAIT: Duration = Duration::from_secs(90);
/// Tries to find ports that nobody else takes meanwhile.
const TRIES: usize = 3;

/// Where the servers of a cluster are: their directories, configurations and ports.
struct Place {
    dir: PathBuf,
    options: Vec<broker::Options>,
}

impl Place {
    /// Writes the configuration of each server below a directory.
    fn new(dir: &Path, setup: &Setup) -> anyhow::Result<Self> {
        // All are taken at once, so that they differ.
        let listeners = (0..2 * SERVERS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let ports = listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect::<anyhow::Result<Vec<u16>>>()?;
        let (clients, routes) = ports.split_at(SERVERS);
        let all: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let mut options = Vec::new();
        for (server, (client, route)) in clients.iter().zip(routes).enumerate() {
            let home = home(dir, server);
            std::fs::create_dir_all(&home)?;
            let config = home.join("server.conf");
            let text = format!(
                "server_name: s{server}\nhost: 127.0.0.1\nmax_payload: {}\n\
                 jetstream {{ store_dir: {:?}, max_file_store: {} }}\n\
                 cluster {{ name: vidi, host: 127.0.0.1, port: {route}, routes: [{}] }}\n",
                setup.max_payload,
                home.join(broker::STORE),
                64_u64 << 30,
                all.join(", ")
            );
            std::fs::write(&config, text)?;
            options.push(broker::Options { config: Some(config), ..setup.broker(*client) });
        }
        Ok(Place { dir: dir.to_owned(), options })
    }

    async fn start(&self, server: usize) -> anyhow::Result<Broker> {
        Broker::start(&home(&self.dir, server), &self.options[server]).await
    }

    /// Address of all servers.
    fn url(&self) -> String {
        let servers: Vec<String> = self.options.iter().map(|o| format!("nats://127.0.0.1:{}", o.port)).collect();
        servers.join(",")
    }
}

fn home(dir: &Path, server: usize) -> PathBuf {
    dir.join(format!("server-{server}"))
}

/// A pipeline on a cluster, whose streams are held by all three servers as far as [`HELD_BY_ALL`] says.
pub struct ClusterRig {
    /// The pipeline; its broker is server 0.
    pub rig: Rig,
    /// The other servers, from server 1 on.
    others: Vec<Broker>,
    place: Place,
}

impl ClusterRig {
    /// Starts servers and stages and waits until all are ready and every stream has all its copies.
    ///
    /// # Errors
    /// The part that does not start, with the log.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        let rig = ClusterRig::begin(setup, Duration::ZERO).await?;
        rig.rig.wait_ready().await?;
        rig.well().await?;
        Ok(rig)
    }

    /// Starts server 0 and the stages, then, after a time in which there is no leader, the other servers. Waits for none of
    /// the stages.
    ///
    /// # Errors
    /// The part that does not start.
    pub async fn begin(mut setup: Setup, without_leader: Duration) -> anyhow::Result<Self> {
        setup.set.push(format!("bus.replicas={SERVERS}"));
        let dir = tempfile::tempdir()?;
        let (place, first) = first_server(dir.path(), &setup).await?;
        // With all three of them, two of which are not there yet.
        let rig = Rig::on(dir, setup, first, &place.url()).await?;
        tokio::time::sleep(without_leader).await;
        let mut others = Vec::new();
        for server in 1..SERVERS {
            others.push(place.start(server).await?);
        }
        Ok(ClusterRig { rig, others, place })
    }

    /// Address of all servers.
    pub fn url(&self) -> String {
        self.place.url()
    }

    fn server(&mut self, server: usize) -> &mut Broker {
        match server {
            0 => &mut self.rig.broker,
            other => &mut self.others[other - 1],
        }
    }

    /// Kills a server with SIGKILL.
    ///
    /// # Errors
    /// If it is not there.
    pub async fn kill(&mut self, server: usize) -> anyhow::Result<()> {
        kill(self.server(server)).await
    }

    /// Starts a server again that was killed, on the same ports and files.
    ///
    /// # Errors
    /// If it does not start again.
    pub async fn restart(&mut self, server: usize) -> anyhow::Result<()> {
        let started = self.place.start(server).await?;
        *self.server(server) = started;
        Ok(())
    }

    /// Stops a server (SIGSTOP) for a time.
    ///
    /// # Errors
    /// If it is not there.
    pub async fn stop_for(&mut self, server: usize, time: Duration) -> anyhow::Result<()> {
        let pid = self.server(server).pid().context("the server is gone")?;
        signal(pid, "STOP")?;
        tokio::time::sleep(time).await;
        signal(pid, "CONT")
    }

    /// Server that leads a stream; waits until one does.
    ///
    /// # Errors
    /// If none does for a minute and a half.
    pub async fn leader(&self, stream: StreamName) -> anyhow::Result<usize> {
        let until = Instant::now() + WELL_WAIT;
        loop {
            if let Some(leader) = look(&self.rig.bus, stream).await.and_then(|seen| seen.leader) {
                return Ok(leader);
            }
            ensure!(Instant::now() < until, "{stream:?} has no leader after {WELL_WAIT:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Streams that a server leads.
    ///
    /// # Errors
    /// As [`leader`](Self::leader).
    pub async fn led_by(&self, server: usize) -> anyhow::Result<Vec<StreamName>> {
        let mut led = Vec::new();
        for stream in StreamName::ALL {
            if self.leader(stream).await? == server {
                led.push(stream);
            }
        }
        Ok(led)
    }

    /// Waits until every stream has a leader, and the copies that it is to have are up to date: the next server may be lost.
    ///
    /// # Errors
    /// The streams of which that is not so after a minute and a half.
    pub async fn well(&self) -> anyhow::Result<()> {
        let until = Instant::now() + WELL_WAIT;
        loop {
            let mut unwell = Vec::new();
            for stream in StreamName::ALL {
                let seen = look(&self.rig.bus, stream).await;
                let copies = if HELD_BY_ALL.contains(&stream) { SERVERS } else { 1 };
                if !seen.as_ref().is_some_and(|s| s.leader.is_some() && s.copies == copies) {
                    unwell.push((stream, seen));
                }
            }
            if unwell.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < until, "after {WELL_WAIT:?} not well: {unwell:?}; {}", self.rig.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Number of terminal events that a job has.
    pub async fn ends(&self, request: &JobRequest) -> usize {
        let events = deploy::client::events_so_far(&self.rig.bus, &request.job).await;
        events.iter().filter(|e| e.event.is_terminal()).count()
    }
}

/// Starts server 0. Its ports, and those of the others, were free a moment ago; others may be faster.
async fn first_server(dir: &Path, setup: &Setup) -> anyhow::Result<(Place, Broker)> {
    let mut tries = 1;
    loop {
        let place = Place::new(dir, setup)?;
        match place.start(0).await {
            Ok(first) => return Ok((place, first)),
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

async fn kill(broker: &mut Broker) -> anyhow::Result<()> {
    signal(broker.pid().context("the server is gone")?, "KILL")?;
    broker.ended().await;
    Ok(())
}

/// State of a stream in the cluster.
#[derive(Debug)]
struct Seen {
    leader: Option<usize>,
    /// Servers that have all of it, the leader among them.
    copies: usize,
}

/// What the cluster says of a stream, if it does.
async fn look(bus: &Bus, stream: StreamName) -> Option<Seen> {
    let info = tokio::time::timeout(Duration::from_secs(2), async { bus.stream(stream).await.get_info().await });
    let cluster = info.await.ok()?.ok()?.cluster?;
    let leader = cluster.leader.as_deref().and_then(|name| name.strip_prefix('s')?.parse().ok());
    let current = cluster.replicas.iter().filter(|peer| peer.current && !peer.offline).count();
    Some(Seen { leader, copies: usize::from(leader.is_some()) + current })
}

/// The servers of a cluster without a pipeline.
pub struct Servers {
    /// The running ones.
    brokers: Vec<Broker>,
    place: Place,
    _dir: TempDir,
}

impl Servers {
    /// Starts all servers, and no stages.
    ///
    /// # Errors
    /// The one that does not start.
    pub async fn start(setup: &Setup) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let (place, first) = first_server(dir.path(), setup).await?;
        let mut brokers = vec![first];
        for server in 1..SERVERS {
            brokers.push(place.start(server).await?);
        }
        Ok(Servers { brokers, place, _dir: dir })
    }

    /// Kills a server with SIGKILL.
    ///
    /// # Errors
    /// If it is not there.
    pub async fn kill(&mut self, server: usize) -> anyhow::Result<()> {
        kill(&mut self.brokers[server]).await
    }

    /// Starts a server again that was killed, on the same ports and files.
    ///
    /// # Errors
    /// If it does not start again.
    pub async fn restart(&mut self, server: usize) -> anyhow::Result<()> {
        self.brokers[server] = self.place.start(server).await?;
        Ok(())
    }

    /// Address of all servers.
    pub fn url(&self) -> String {
        self.place.url()
    }
}
