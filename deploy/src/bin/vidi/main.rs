//! The `vidi` command.
//!
//! In reading order: [`cli`] (the command line), this file (which part does what), [`up`] (broker and stages), [`ask`]
//! (questions), [`tasks`] (what can be asked), [`export`] (files of their answers), [`pictures`] (of them), [`running`] (requests
//! to a pipeline that runs), [`gateway`] (the same over HTTP), [`trace`](mod@trace) (where a job's time went), [`checkpoints`] (a model's files),
//! [`videos`] (what is known of videos, on disk), [`demo_video`] (a video with a known truth), [`eval`] (benchmarks).

mod ask;
mod checkpoints;
mod cli;
mod demo_video;
mod eval;
mod export;
mod gateway;
mod pictures;
mod running;
mod tasks;
mod trace;
mod up;
mod videos;

use std::process::ExitCode;

use config::{Config, layers};
use deploy::recording;
use deploy::up::mps::home::Home;
use deploy::up::mps::keeper;
use deploy::up::{profile, replicas, stages};
use protocol::control::Verb;
use protocol::file_uri;
use runtime::bus::Role;
use runtime::notify::Notifier;
use runtime::process::{Exit, Fatal, command_line, on_signal, runtime, service_of, warn_of_random_weights};
use runtime::traces::{self, Exporting};
use runtime::{answer, remark, telemetry};
use tracing::Instrument;

use cli::{Cli, Command, ConfigAction};

fn main() -> ExitCode {
    // SAFETY: this is the only thread yet.
    unsafe { compute::threads::settle() };
    let cli = match command_line::<Cli>() {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fatal(exit, text)) => {
            remark!("error: {text}");
            exit.into()
        }
    }
}

/// The configuration of this process: merged here, unless whoever started it has done so.
fn configuration(cli: &Cli) -> Result<Config, Fatal> {
    let wrong = |e| Fatal(Exit::Usage, e);
    if let Command::Stage { supervised: Some(merged), .. } = &cli.command {
        return Config::merged(merged).map_err(wrong);
    }
    let of_environment = || {
        let name = layers::variable(layers::PROFILE)?;
        Some(name.into_string().map_err(|name| format!("environment: {} = {name:?} is not UTF-8", layers::PROFILE)))
    };
    let named = cli.profile.clone().map(Ok).or_else(of_environment).transpose().map_err(wrong)?;
    let profile = named.as_deref().map(profile::text).transpose().map_err(wrong)?;
    let model = match &cli.command {
        Command::Up(up) => up.model.as_deref(),
        Command::Ask(ask) => ask.model.as_deref(),
        Command::Bench(bench) => bench.model.as_deref(),
        _ => None,
    };
    let place: &[String] = match &cli.command {
        Command::Up(up) => &up.place,
        Command::Plan { place, .. } => place,
        Command::Bench(bench) => &bench.place,
        _ => &[],
    };
    let mut args = cli.config.clone();
    // A flag as any other, so that it wins over random weights that a layer below names.
    args.set.extend(model.map(|dir| format!("model.dir={}", toml::Value::String(file_uri::text(dir)))));
    args.set.extend(replicas::placement(place).map_err(wrong)?);
    if matches!(&cli.command, Command::Up(up) if up.mps) {
        args.set.push("up.mps=true".to_owned());
    }
    args.load_over(profile)
}

/// Starts logs and traces as the command has them where the configuration says nothing else.
fn telemetry(command: &Command, config: &Config) -> Result<Exporting, Fatal> {
    let mut log = config.log.clone();
    let quiet = match command {
        Command::Ask(_) | Command::Eval(_) => Some("error"),
        // Lines would stand in what it draws.
        Command::Top { .. } => Some("off"),
        _ => None,
    };
    if let Some(filter) = quiet.filter(|_| log == config::LogConfig::default()) {
        filter.clone_into(&mut log.filter);
    }
    let service = match command {
        Command::Stage { name, .. } => service_of(*name),
        Command::Gateway { .. } => "vidi-gateway",
        _ => "vidi",
    };
    telemetry::init(&log, &config.traces, service).map_err(|e| Fatal(Exit::Usage, e))
}

fn run(cli: Cli) -> Result<(), Fatal> {
    let mut config = configuration(&cli)?;
    // Ends behind the runtime: the last spans are sent then.
    let _exporting = telemetry(&cli.command, &config)?;
    let runtime = runtime()?;
    match cli.command {
        Command::Up(args) => runtime.block_on(up::up(&mut config, args)),
        Command::Down { wait } => runtime.block_on(up::down(wait)),
        Command::Gateway { http } => runtime.block_on(gateway::gateway(&mut config, http)),
        Command::Ask(args) => runtime.block_on(ask::ask(&mut config, args).instrument(traces::command("vidi ask"))),
        Command::Tasks { json } => tasks::list(&mut config, json),
        Command::Cancel { job } => runtime.block_on(running::cancel(&config, job)),
        Command::Trace { job, svg } => runtime.block_on(trace::trace(&config, job, svg.as_deref())),
        Command::Status { json } => runtime.block_on(running::status(&config, json)),
        Command::Top { once } => runtime.block_on(running::top(&config, once)),
        Command::Inspect { model, all, json } => checkpoints::show_tensors(&config, &model, all, json),
        Command::DemoModel { dir, family, size, seed } => {
            let size = checkpoints::of_family(size, family).map_err(|e| Fatal(Exit::Usage, e))?;
            checkpoints::write_demo_model(&dir, size, seed)
        }
        Command::DemoVideo { out, seed, seconds } => demo_video::demo_video(&out, seed, seconds),
        Command::Plan { model, video_seconds, replicas: given, json, place: _ } => {
            let replicas = replicas::replicas(&given, &config).map_err(|e| Fatal(Exit::Usage, e))?;
            checkpoints::show_plan(&config, model.as_deref(), &replicas, &video_seconds, json)
        }
        Command::Quantize { model, to, out } => {
            // Ctrl-C leaves nothing of an unfinished file.
            let stop = runtime.block_on(async { on_signal() });
            checkpoints::write_quantized(&model, to, &out, &stop)
        }
        Command::Videos { action, json } => videos::videos(&config, action, json),
        Command::Bench(bench) => {
            up::use_model(&mut config)?;
            warn_of_random_weights(&config);
            runtime.block_on(bench.run(&config))
        }
        Command::Eval(action) => runtime.block_on(eval::eval(&config, action)),
        Command::Load { stage } => runtime.block_on(running::load(&config, Verb::Load, stage)),
        Command::Unload { stage } => runtime.block_on(running::load(&config, Verb::Unload, stage)),
        Command::Stage { name, alive, supervised, broker_of } => runtime.block_on(async {
            let (mut shutdown, mut notifier) = (on_signal(), Notifier::default());
            if supervised.is_some() {
                shutdown = stages::until_stdin_ends(shutdown, broker_of);
            } else {
                config = config.of_only_process(name).map_err(|e| Fatal(Exit::Usage, e))?;
                notifier = Notifier::of_environment();
                if let Some(file) = alive {
                    let wrong = |e| Fatal(Exit::Usage, format!("--alive {}: {e}", file.display()));
                    notifier = notifier.and_file(file.clone()).map_err(wrong)?;
                }
                up::find_model(&mut config)?;
                // Whoever supervises it has said so for all stages.
                warn_of_random_weights(&config);
            }
            stages::serve(name, &config, shutdown, notifier).await
        }),
        Command::MpsKeeper { program, state } => runtime.block_on(async {
            let shutdown = on_signal();
            let home = Home::below(&state).map_err(|e| Fatal(Exit::Usage, format!("{e:#}")))?;
            keeper::keep(&program, &home, shutdown).await
        }),
        Command::Record(args) => runtime.block_on(async {
            recording::command::record(&running::connect(&config, Role::Operator).await?, args).await
        }),
        Command::Replay(args) => runtime.block_on(async {
            recording::command::replay(&running::connect(&config, Role::Operator).await?, args).await
        }),
        Command::Recording(action) => recording::command::recording(action),
        Command::Config { action: ConfigAction::Print } => Ok(answer!("{}", config.to_toml().trim_end())?),
    }
}
