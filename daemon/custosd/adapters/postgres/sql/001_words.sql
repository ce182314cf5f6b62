-- The words that tables are made of: one domain for each closed vocabulary.
--
-- Domains over text, not enums: a word is added by replacing one constraint, in a
-- transaction, and the values read as what they are. Vocabularies that the program
-- knows are held to its own by a test.

create schema if not exists custosd;

-- What things are called: never empty, and ordered by bytes, so that an index neither
-- depends on the locale of the machine nor breaks when its library is updated.
create domain custosd.name as text collate "C"
    constraint name_given check (value <> '');

create domain custosd.shard as smallint
    constraint shard_range check (value between 0 and 255);

create domain custosd.tally as bigint
    constraint tally_range check (value >= 0);

-- Not-a-number sorts above every number, so it is refused too.
create domain custosd.fraction as double precision
    constraint fraction_range check (value >= 0 and value <= 1);

create domain custosd.agent_state as text
    constraint agent_state_known check (value in (
        'starting', 'idle', 'running', 'waiting', 'degraded', 'unresponsive', 'restarting',
        'failed', 'quarantined', 'terminated'));

create domain custosd.run_end as text
    constraint run_end_known check (value in (
        'finished', 'submitted', 'gave_up', 'limit', 'aborted', 'error'));

create domain custosd.standing as text
    constraint standing_known check (value in (
        'progressing', 'stuck', 'drifting', 'waiting', 'idle', 'silent', 'done',
        'done_untested', 'duplicating', 'stopped', 'unknown'));

create domain custosd.phase as text
    constraint phase_known check (value in (
        'starting', 'exploring', 'planning', 'implementing', 'testing', 'debugging',
        'finishing', 'waiting', 'unknown'));

create domain custosd.signal_kind as text
    constraint signal_kind_known check (value in (
        'repeating', 'stale', 'errors', 'alternating', 'churning', 'no_progress', 'scope',
        'drifting', 'waiting', 'silent', 'idle', 'untested_claim', 'overspending',
        'duplicating'));

create domain custosd.severity as text
    constraint severity_known check (value in ('note', 'suspicion', 'alarm'));

create domain custosd.steering_kind as text
    constraint steering_kind_known check (value in ('guidance', 'correction', 'emergency'));

create domain custosd.steering_reason as text
    constraint steering_reason_known check (value in (
        'stuck', 'drifting', 'violating_constraints', 'over_engineering', 'confused', 'idle'));

create domain custosd.intervention_state as text
    constraint intervention_state_known check (value in (
        'proposed', 'approved', 'queued', 'delivered', 'acknowledged', 'acted', 'expired',
        'failed'));

create domain custosd.restart_cause as text
    constraint restart_cause_known check (value in (
        'crash', 'killed', 'out_of_memory', 'usage_limit', 'auth', 'provider_outage',
        'poison_task', 'hang', 'requested', 'unknown'));

create domain custosd.restart_state as text
    constraint restart_state_known check (value in (
        'intended', 'running', 'succeeded', 'failed', 'abandoned'));

create domain custosd.restart_step as text collate "C"
    constraint restart_step_known check (value in (
        'lease', 'evidence', 'graceful_stop', 'forced_stop', 'verify_dead', 'spawn',
        'first_beat', 'hand_over'));

create domain custosd.step_state as text
    constraint step_state_known check (value in ('running', 'done', 'skipped', 'failed'));

create domain custosd.task_state as text
    constraint task_state_known check (value in (
        'blocked', 'ready', 'claimed', 'succeeded', 'failed', 'cancelled'));

create domain custosd.task_priority as text
    constraint task_priority_known check (value in ('critical', 'high', 'medium', 'low'));
