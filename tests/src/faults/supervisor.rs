//! Faults of `vidi up` itself, with a broker of its own: killed, started twice at once.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::client;
use protocol::event::Event;
use runtime::bus::Role;
use runtime::process::Exit;

use super::long_answer::{LongAnswer, SCENE};
use super::look::followed;
use super::{Case, Row, Scale, Seen};
use crate::media::{demo_video, video};
use crate::own::{Own, Place, file_of};

/// Brokers and stages end within this time of who started them.
const ENDS: Duration = Duration::from_secs(5);
/// Longest wait for stages to start, and for a second `vidi up` to be refused.
const BEGINS: Duration = Duration::from_secs(60);

/// Checks that nothing of a place is left that could be taken for a running pipeline.
fn tidy(place: &Place) -> anyhow::Result<()> {
    ensure!(!place.state().join("up.json").exists(), "up.json is left");
    let merged = file_of(&place.state(), "stages-");
    ensure!(merged.is_none(), "{merged:?} is left");
    Ok(())
}

/// SIGKILL of `vidi up` in the middle of an answer, and a new one in the same state directory at once.
pub async fn killed(scale: &Scale) -> Row {
    let expected =
        "its broker and stages end with it, the next one has the only broker on the store and answers the job";
    let name = "vidi up killed and started again".to_owned();
    let rounds = (scale.jobs / 8).clamp(1, 5);
    let case = Case { name, expected, bound_s: scale.bound(20.0 + rounds as f64 * 25.0) };
    case.run(async {
        let place = Place::new(scale.broker.clone())?;
        let demo = ["--set", "model.dir=demo"];
        let mut up = place.up("up-0", &demo)?;
        let mut bus = up.ready(Role::Client).await?;
        let (video, truth) = demo_video(&place.media(), SCENE.0, SCENE.1)?;
        let long = LongAnswer::new(&bus, &video, &truth).await.with_context(|| up.log())?;
        let mut slowest = Duration::ZERO;
        for round in 1..=rounds {
            let request = long.request(&format!("killed-{round}"))?;
            client::submit(&bus, &request).await?;
            let mut events = client::Events::new(&bus, &request.job);
            while !matches!(events.next().await?.event, Event::Text { .. }) {}
            let brokers = place.processes(Place::BROKER);
            ensure!(brokers.len() == 1, "{brokers:?}");
            up.kill()?;
            let since = Instant::now();
            up = place.up(&format!("up-{round}"), &demo)?;
            bus = up.ready(Role::Client).await?;
            let now = place.processes(Place::BROKER);
            ensure!(now.len() == 1 && now != brokers, "brokers {now:?} after {brokers:?}");
            slowest = slowest.max(since.elapsed());
            let events = followed(&bus, &request.job).await.with_context(|| up.log())?;
            long.check(&events).with_context(|| up.log())?;
        }
        up.stop()?;
        ensure!(place.processes(Place::BROKER).is_empty(), "a broker outlives a proper stop");
        place.empty(Place::STAGE, ENDS).await?;
        tidy(&place)?;
        let injected = format!("{rounds} kills of vidi up, each in an answer of {} tokens", long.tokens());
        let observed =
            format!("one broker each time, {rounds} true answers, ready again after {:.1} s", slowest.as_secs_f64());
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}

/// SIGKILL of `vidi up` and of `vidi ask` with a pipeline of its own, and nothing started afterwards.
pub async fn killed_for_good(scale: &Scale) -> Row {
    let expected = "their brokers and stages end within 5 s";
    let case = Case { name: "vidi up and vidi ask killed".to_owned(), expected, bound_s: scale.bound(90.0) };
    case.run(async {
        let place = Place::new(scale.broker.clone())?;
        let clip = place.media().join("clip.mp4");
        video(&clip, 2)?;
        let mut up = place.up("up", &[])?;
        up.ready(Role::Client).await?;
        up.kill()?;
        let broker = place.empty(Place::BROKER, ENDS).await?;
        let stages = place.empty(Place::STAGE, ENDS).await?;

        let clip = clip.to_string_lossy().into_owned();
        let mut asking = place.command(&["ask", &clip, "a dog", "--max-new-tokens", "4096", "--quiet"])?.spawn()?;
        let since = Instant::now();
        while place.processes(Place::STAGE).len() < 5 {
            ensure!(since.elapsed() < BEGINS, "no stages");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        asking.kill()?;
        asking.wait()?;
        place.empty(Place::BROKER, ENDS).await?;
        place.empty(Place::STAGE, ENDS).await?;
        let observed = format!(
            "vidi up's broker ended after {:.2} s, its stages after {:.2} s more",
            broker.as_secs_f64(),
            stages.as_secs_f64()
        );
        Ok(Seen { injected: "SIGKILL of both".to_owned(), observed, seconds: None })
    })
    .await
}

/// Two `vidi up` in one state directory at the same time.
pub async fn two_at_once(scale: &Scale) -> Row {
    let expected = "one is refused with status 2 and names the other, which has the only broker and becomes ready";
    let case = Case {
        name: "two vidi up at once".to_owned(),
        expected,
        bound_s: scale.bound(10.0 + scale.starts as f64 * 15.0),
    };
    case.run(async {
        for _ in 0..scale.starts {
            let place = Place::new(scale.broker.clone())?;
            let mut both = [place.up("one", &[])?, place.up("other", &[])?];
            let since = Instant::now();
            let refused = loop {
                let ended = [!both[0].runs()?, !both[1].runs()?];
                if let Some(at) = ended.iter().position(|e| *e) {
                    break at;
                }
                ensure!(since.elapsed() < BEGINS, "both run: {} {}", both[0].log(), both[1].log());
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            let [one, other] = both;
            let (refused, mut stays): (Own, Own) = if refused == 0 { (one, other) } else { (other, one) };
            let (status, said) = refused.ended()?;
            ensure!(status.code() == Some(Exit::Usage as i32), "{status}: {said}");
            ensure!(said.contains(&format!("(process {})", stays.pid())), "{said}");
            stays.ready(Role::Client).await?;
            let brokers = place.processes(Place::BROKER);
            ensure!(brokers.len() == 1, "brokers {brokers:?}");
            stays.stop()?;
            ensure!(place.processes(Place::BROKER).is_empty(), "a broker outlives a proper stop");
            tidy(&place)?;
        }
        let injected = format!("two started at the same instant, {} times", scale.starts);
        Ok(Seen { injected, observed: "one refused, one broker, nothing left behind".to_owned(), seconds: None })
    })
    .await
}
