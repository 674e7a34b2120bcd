use super::*;
use protocol::error::StageName;
use protocol::message::{Output, PcmWindow};
use protocol::plan::{AudioPlan, MediaPlan, WINDOW_SAMPLES};
use protocol::tensor::Tensor;
use protocol::wire::VERSION;

/// Index of a window that panics the stage, and of one that fails with all that are beside it.
const PANICS: u64 = 100;
const FAILS: u64 = 101;

/// Stage that notes which windows it has computed together; what it emits is the window.
#[derive(Default)]
struct Noting {
    passes: Vec<Vec<u64>>,
}

impl Stage for Noting {
    const NAME: StageName = StageName::Audio;
    type Input<'a> = PcmWindow<'a>;

    fn units(_: &PcmWindow<'_>) -> u64 {
        1
    }

    fn process(&mut self, input: PcmWindow<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        self.process_together(vec![Work { input, port }]).into_iter().collect()
    }

    fn process_together<'a>(&mut self, works: Vec<Work<'a, PcmWindow<'a>>>) -> Vec<Result<(), Stop>> {
        let indices: Vec<u64> = works.iter().map(|work| work.input.index).collect();
        self.passes.push(indices.clone());
        let failed = indices.contains(&FAILS);
        works
            .into_iter()
            .map(|Work { input, port }| {
                if port.cancelled() {
                    return Err(Stop::Cancelled);
                }
                port.emit(Output::Pcm(input))?;
                // After some outputs are out, as a device's errors come.
                assert!(!indices.contains(&PANICS), "a window that panics");
                if failed { Err(JobError::new(ErrorKind::OutOfMemory, "no memory").into()) } else { Ok(()) }
            })
            .collect()
    }
}

/// Port that notes what it hears.
#[derive(Default)]
struct Heard {
    emitted: Vec<u64>,
    sized: Vec<u64>,
    computed: usize,
    given_up: usize,
    cancelled: bool,
}

impl Port for Heard {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        let Output::Pcm(window) = output else { unreachable!("the stage emits windows") };
        self.emitted.push(window.index);
        Ok(())
    }

    fn cancelled(&self) -> bool {
        self.cancelled
    }
}

impl Outward for Heard {
    fn sized(&mut self, units: u64) {
        self.sized.push(units);
    }

    fn again(&mut self) {
        self.emitted.clear();
    }

    fn computed(&mut self) {
        self.computed += 1;
    }

    fn give_up(&mut self) {
        self.given_up += 1;
    }
}

fn job(index: u64) -> JobId {
    JobId::new(format!("job-{}", index % 3)).unwrap()
}

fn member(index: u64) -> Member<Heard> {
    let plan = MediaPlan { audio: AudioPlan::new(200 * WINDOW_SAMPLES), ..MediaPlan::default() };
    let tensor = Tensor::from_i16(&vec![7; WINDOW_SAMPLES as usize]);
    let body = wire::encode(&PcmWindow { v: VERSION, job: job(index), plan, index, tensor });
    Member { body: body.into(), job: job(index), port: Heard::default() }
}

/// What a stage makes of windows of these indices, and the passes that it took.
fn outcomes(members: Vec<Member<Heard>>) -> (Vec<Result<Heard, Stop>>, Vec<Vec<u64>>) {
    let mut stage = Noting::default();
    let outcomes = compute(&mut stage, members);
    (outcomes, stage.passes)
}

#[test]
fn messages_that_come_together_pass_together_and_each_has_its_own_outputs() {
    let (outcomes, passes) = outcomes((0..4).map(member).collect());
    assert_eq!(passes, [[0, 1, 2, 3]]);
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let port = outcome.ok().unwrap();
        assert_eq!((port.emitted, port.computed, port.given_up), (vec![index as u64], 1, 0));
        assert_eq!(port.sized, [4], "each may take as long as all");
    }
}

#[test]
fn whoever_fails_or_panics_beside_others_fails_alone_and_they_do_not() {
    for (culprit, kind) in [(FAILS, "Failed"), (PANICS, "Unavailable")] {
        let (outcomes, passes) = outcomes([0, culprit, 2].map(member).into());
        assert_eq!(passes, [vec![0, culprit, 2], vec![0], vec![culprit], vec![2]]);
        for (index, outcome) in [0, culprit, 2].into_iter().zip(outcomes) {
            match outcome {
                Ok(port) => {
                    assert!(index != culprit);
                    assert_eq!((port.emitted, port.computed, port.given_up), (vec![index], 1, 0));
                    assert_eq!(port.sized, [3, 1]);
                }
                Err(stop) => assert!(index == culprit && format!("{stop:?}").starts_with(kind), "{index}: {stop:?}"),
            }
        }
    }
}

#[test]
fn a_message_that_is_wrong_or_cancelled_drops_out_and_the_others_pass_together() {
    let mut members: Vec<_> = (0..5).map(member).collect();
    members[1].port.cancelled = true;
    members[2].body = members[2].body.slice(..members[2].body.len() / 2);
    members[3].job = job(4);
    let (outcomes, passes) = outcomes(members);
    assert_eq!(passes, [[0, 1, 4]], "what cannot be read reaches no stage");
    let kinds: Vec<String> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(port) => format!("{:?}", port.emitted),
            Err(Stop::Failed(error)) => format!("{:?}", error.kind),
            Err(stop) => format!("{stop:?}"),
        })
        .collect();
    assert_eq!(kinds, ["[0]", "Cancelled", "PoisonMessage", "PoisonMessage", "[4]"]);
}

#[test]
fn company_is_what_makes_the_last_step_full_and_no_step_more() {
    for (units, most, want) in [(1, 4, 3), (4, 4, 0), (8, 4, 0), (6, 4, 2), (1, 1, 0), (8, 16, 8), (u64::MAX, 4, 0)] {
        assert_eq!(room(units, most), want, "{units} of {most}");
    }
    let Member { body, .. } = member(0);
    assert_eq!((units::<Noting>(&body), units::<Noting>(&body[1..])), (1, u64::MAX));
}
