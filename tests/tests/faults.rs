//! Fault suite at a size for CI; `cargo run --bin faults` runs it at full size and writes tests/FAULTS.md.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers: what it prints is read by who started it"
)]

use tests::faults::{
    Row, Scale, batches, broker, clock, cluster, ends, flow, hung, killed, losses, messages, probes, supervisor,
    waiting, weights,
};

async fn show(case: impl AsyncFnOnce(&Scale) -> Row) -> anyhow::Result<()> {
    case(&Scale::short()).await.check().map(|row| println!("{row:?}"))
}

/// Runs a case on the broker that Debian ships, if it is installed.
async fn show_on_the_old_broker(case: impl AsyncFnOnce(&Scale) -> Row) -> anyhow::Result<()> {
    let Some(old) = tests::harness::brokers().into_iter().flatten().next() else { return Ok(()) };
    let scale = Scale { broker: Some(old), ..Scale::short() };
    case(&scale).await.check().map(|row| println!("{row:?}"))
}

macro_rules! cases {
    ($($name:ident: $show:ident($case:path);)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() -> anyhow::Result<()> {
            $show($case).await
        })*
    };
}

cases! {
    jobs_are_answered_whichever_stage_is_killed: show(killed::any_stage);
    jobs_are_answered_whichever_stage_is_killed_on_the_old_broker: show_on_the_old_broker(killed::any_stage);
    a_message_that_kills_every_worker_fails_its_job_and_no_other: show(killed::by_a_message);
    a_job_that_kills_every_owner_fails_and_no_other: show(killed::by_a_job);
    two_owners_of_a_job_end_it_once_and_tell_its_text_once: show(killed::two_owners);
    jobs_are_answered_once_though_the_owner_of_several_is_killed: show(batches::owner_killed);
    jobs_are_answered_once_though_the_owner_of_several_is_killed_on_the_old_broker: show_on_the_old_broker(batches::owner_killed);
    several_jobs_of_a_worker_have_each_its_own_end: show(batches::ends);
    two_owners_of_several_jobs_end_each_once: show(batches::two_owners);
    jobs_go_to_whoever_keeps_their_video_and_none_is_lost: show(batches::affinity);
    a_job_is_answered_though_vidi_up_is_killed_and_started_again: show(supervisor::killed);
    a_job_is_answered_though_vidi_up_is_killed_with_the_old_broker: show_on_the_old_broker(supervisor::killed);
    broker_and_stages_end_with_a_supervisor_that_is_killed: show(supervisor::killed_for_good);
    broker_and_stages_end_with_a_supervisor_that_is_killed_with_the_old_broker: show_on_the_old_broker(supervisor::killed_for_good);
    of_two_supervisors_one_is_refused: show(supervisor::two_at_once);
    all_stages_may_start_at_the_same_time: show(killed::start_together);
    jobs_are_answered_though_the_broker_is_killed_and_restarted: show(broker::restarted);
    jobs_are_answered_though_the_old_broker_is_killed_and_restarted: show_on_the_old_broker(broker::restarted);
    jobs_are_answered_though_the_broker_comes_back_without_its_memory: show(broker::restarted_without_memory);
    jobs_are_answered_though_the_old_broker_comes_back_without_its_memory: show_on_the_old_broker(broker::restarted_without_memory);
    jobs_are_answered_though_the_broker_comes_back_with_a_smaller_limit: show(broker::smaller_payload);
    jobs_are_answered_though_the_broker_stands_still: show(broker::paused);
    text_is_told_once_though_the_broker_stands_still_in_an_answer: show(broker::paused_in_an_answer);
    answers_are_true_and_told_once_though_the_broker_stands_still_in_them: show(broker::paused_in_true_answers);
    jobs_are_answered_once_a_full_disk_has_room_again: show(broker::disk_full);
    garbage_on_any_subject_kills_nothing: show(messages::poison);
    a_poison_message_fails_its_own_job_and_is_kept: show(messages::poison_of_a_job);
    a_terminal_event_that_the_stream_refused_ends_nothing: show(messages::refused_end);
    duplicates_of_every_message_change_nothing: show(messages::duplicates);
    the_order_of_messages_changes_nothing: show(messages::out_of_order);
    a_lost_message_is_made_again: show(messages::lost);
    a_message_that_the_old_broker_lost_is_made_again: show_on_the_old_broker(messages::lost);
    a_full_stream_slows_its_producer: show(flow::full_stream);
    many_jobs_with_little_room_do_not_block_each_other: show(flow::no_deadlock);
    memory_does_not_grow_with_the_length_of_a_video: show(flow::long_video);
    a_slow_consumer_slows_nobody_else: show(flow::slow_consumer);
    a_cancelled_job_is_gone_within_a_second: show(ends::cancel);
    a_job_without_a_worker_is_cancelled_at_once: show(ends::cancel_without_a_worker);
    deadlines_hold_for_jobs_in_work_and_in_line: show(ends::deadline);
    more_requests_than_the_broker_holds_are_worked_off: show(waiting::flood);
    more_requests_than_the_old_broker_holds_are_worked_off: show_on_the_old_broker(waiting::flood);
    a_job_is_cancelled_at_once_before_it_is_admitted: show(waiting::cancel_before_admission);
    a_job_is_cancelled_at_once_before_the_old_broker_has_it_admitted: show_on_the_old_broker(waiting::cancel_before_admission);
    a_job_is_cancelled_at_once_while_its_owner_waits_for_a_probe: show(waiting::cancel_in_a_probe);
    jobs_in_line_cost_little_however_many_wait: show(waiting::idle);
    an_id_is_used_again_once_its_events_are_gone: show(waiting::ages);
    an_id_is_used_again_on_the_old_broker: show_on_the_old_broker(waiting::ages);
    a_deleted_stream_is_made_again: show(losses::deleted);
    a_broker_that_has_lost_everything_ends_every_job: show(losses::empty_store);
    an_old_broker_that_has_lost_everything_ends_every_job: show_on_the_old_broker(losses::empty_store);
    probes_are_answered_however_many_come_at_once: show(probes::probes);
    probes_are_answered_however_many_come_at_once_on_the_old_broker: show_on_the_old_broker(probes::probes);
    an_engine_that_hangs_ends_its_process_and_its_work_goes_to_another: show(hung::hung);
    an_engine_that_hangs_ends_its_process_on_the_old_broker: show_on_the_old_broker(hung::hung);
    deadlines_hold_though_a_clock_is_off: show(clock::clock);
    deadlines_hold_though_a_clock_is_off_on_the_old_broker: show_on_the_old_broker(clock::clock);
    weights_of_another_checkpoint_are_refused_by_name: show(weights::other_weights);
    weights_of_another_checkpoint_are_refused_on_the_old_broker: show_on_the_old_broker(weights::other_weights);
    jobs_are_answered_whichever_server_of_a_cluster_is_killed: show(cluster::each_killed);
    jobs_are_answered_though_a_server_of_a_cluster_stands_still: show(cluster::one_stopped);
    no_job_is_accepted_without_most_of_a_cluster_and_none_that_was_is_lost: show(cluster::two_down);
    jobs_of_clients_that_are_gone_are_answered: show(ends::client_gone);
}
