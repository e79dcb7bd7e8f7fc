{#
One run at a time on a shared store.

A lock is an empty table `run_lock_<n>` whose comment names its owner; the highest n is the lock.
`create table if not exists` is atomic, and so is who wins it: everyone who finds n free (or its
owner dead) tries to make n + 1, reads it back, and holds it only if the comment is its own and no
higher one exists. Numbers only grow, so that a slow process can never take away what came after.

An owner that is killed leaves its lock. It counts as dead when its lock was not touched for
`run_lock_stale_seconds`, and no statement of its invocation is running: every statement carries the
invocation's id in its comment, and each model touches the lock before it builds. An owner that was
only asleep finds a higher lock before its next model, and stops there.

The embedded engine needs none of this: one process at a time holds the path.
#}

{#- Whether other processes may be at work on the same store. -#}
{%- macro is_shared_store() -%}
    {{ return(target.type != 'chdb') }}
{%- endmacro -%}

{#- Whether what was called may change the store: tests may not, nor what asks how fresh it is, or only compiles. -#}
{%- macro may_change() -%}
    {{ return(execute and flags.WHICH not in ('test', 'freshness', 'compile', 'generate', 'show')) }}
{%- endmacro -%}

{#- The comment on every statement that dbt sends: what a waiting run looks for. -#}
{%- macro run_comment(node) -%}
    tokenledger run {{ invocation_id }}{{ ' ' ~ node.unique_id if node else '' }}
{%- endmacro -%}

{#- on-run-start, and the first line of an operation: take the lock, wait for it, or refuse. -#}
{%- macro take_run_lock() -%}
    {%- if may_change() and is_shared_store() -%}
        {%- set limit = var('run_lock_wait_seconds', 600) | int -%}
        {%- set stale = var('run_lock_stale_seconds', 120) | int -%}
        {%- set state = namespace(held=false, quiet=0, told=false, seen='') -%}
        {%- for turn in range(limit // 3 + 1) if not state.held -%}
            {%- set lock = _newest_run_lock() -%}
            {%- if lock.is_running or lock.owner ~ lock.touched != state.seen -%}
                {%- set state.quiet = 0 -%}
            {%- endif -%}
            {%- set state.seen = lock.owner ~ lock.touched -%}
            {%- set is_dead = lock.idle_seconds >= stale and state.quiet >= 4 -%}
            {%- if lock.owner in ('', 'free') or is_dead -%}
                {%- if is_dead -%}
                    {%- do log('the run ' ~ lock.owner ~ ' ended without freeing its lock: taking it over', info=true) -%}
                {%- endif -%}
                {%- set state.held = _make_run_lock(lock.number + 1) -%}
            {%- else -%}
                {%- if not state.told -%}
                    {%- do log('waiting up to ' ~ limit ~ ' s for the run ' ~ lock.owner ~ ' to end', info=true) -%}
                    {%- set state.told = true -%}
                {%- endif -%}
                {%- set state.quiet = state.quiet + 1 -%}
                {%- do run_query('select sleep(3)') -%}
            {%- endif -%}
        {%- endfor -%}
        {%- if not state.held -%}
            {%- set lock = _newest_run_lock() -%}
            {{ exceptions.raise_compiler_error(
                'another run holds the store: ' ~ lock.owner ~ ', lock ' ~ lock.number ~ ', last seen '
                ~ lock.idle_seconds ~ ' s ago. Nothing was done. Run again when it has ended, or wait '
                ~ 'longer: --vars "run_lock_wait_seconds: 3600".'
            ) }}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}

{#- on-run-start, and of operations: the engine goes on with the deletes of a run that was killed. What they take is
    there until then: a run that came between would count it as built, and then it would be gone for good. So they
    are waited for, in the tables of models; those that ask for a helper that the next call drops are ended, as
    that call asks for them anew. What it built beside a table goes, as it may only sleep, and swap that in. -#}
{%- macro end_what_was_begun(has_to_end=true) -%}
    {%- if may_change() -%}
        {%- for helper in ['llm_traces__reparse', 'retire_kept_'] -%}
            {%- do end_deletes_by(helper) -%}
        {%- endfor -%}
        {#- An erasure's list goes when all that asked for it has ended. A server that starts again may take it for begun. -#}
        {%- for row in run_query(
            "select distinct extract(command, 'erase_list_[0-9a-f]{32}(?:_rejects)?') as list from system.mutations where database = "
            ~ sql_text(target.schema) ~ " and not is_done and list != '' and list not in (select name from system.tables where database = "
            ~ sql_text(target.schema) ~ ')'
        ).rows -%}
            {%- do end_deletes_by(row[0]) -%}
        {%- endfor -%}
        {%- do drop_leftovers("startsWith(name, 'llm_traces__reparse')") -%}
        {%- do end_swap() -%}
        {%- do drop_copies() -%}
        {%- set failing = [] -%}
        {%- set unfinished = run_query(
            'select `table`, mutation_id, latest_fail_reason from system.mutations where database = ' ~ sql_text(target.schema)
            ~ ' and not is_done and ' ~ is_of_model('`table`') ~ ' order by `table`, mutation_id'
        ).rows -%}
        {%- for row in unfinished if row[2] -%}
            {%- do failing.append(row[0]) -%}
            {%- set message = 'a delete of ' ~ row[0] ~ ' that was begun before cannot end: ' ~ row[2][:300]
                ~ '. Mend that; or end it, and call the operation again that asked for it: kill mutation where database = '
                ~ sql_text(target.schema) ~ ' and mutation_id = ' ~ sql_text(row[1]) -%}
            {%- if has_to_end -%}
                {{ refuse(message) }}
            {%- endif -%}
            {%- do print('note: ' ~ message) -%}
        {%- endfor -%}
        {%- for table in unfinished | map('first') | unique if table not in failing -%}
            {%- do run_and_wait('alter table ' ~ target.schema ~ '.`' ~ table ~ '`' ~ on_cluster() ~ ' delete where false') -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{#- Before each model: still ours? Then touch it. -#}
{%- macro keep_run_lock() -%}
    {%- if may_change() and is_shared_store() -%}
        {%- set lock = _newest_run_lock() -%}
        {%- if lock.owner != invocation_id -%}
            {{ exceptions.raise_compiler_error(
                'this run lost its lock to ' ~ (lock.owner or 'nobody') ~ ': it had not been seen for '
                ~ 'longer than run_lock_stale_seconds. Nothing is lost: run again.'
            ) }}
        {%- endif -%}
        {%- do run_query(_touch_run_lock(lock.number, invocation_id)) -%}
    {%- endif -%}
{%- endmacro -%}

{#- Of dbt-clickhouse, by which a model appends, and swaps in what it has built: not where another run has taken over. -#}
{%- macro clickhouse__insert_into(target_relation, sql, has_contract, use_columns_from_sql=False) -%}
    {%- do keep_run_lock() -%}
    {{ dbt.clickhouse__insert_into(target_relation, sql, has_contract, use_columns_from_sql) }}
{%- endmacro -%}

{%- macro exchange_tables_atomic(old_relation, target_relation, obj_types='TABLES') -%}
    {%- do keep_run_lock() -%}
    {%- do dbt.exchange_tables_atomic(old_relation, target_relation, obj_types) -%}
{%- endmacro -%}

{#- Of dbt-clickhouse too, which drops what has the names: what is no copy of a run's own is another run's, and fails
    to be made a second time. -#}
{%- macro create_distributed_local_table(distributed_relation, shard_relation, structure_relation, sql_query=none, has_contract=false) -%}
    {%- do keep_run_lock() -%}
    {%- if '__dbt_' in shard_relation.identifier -%}
        {%- do drop_relation_if_exists(shard_relation) -%}
        {%- do drop_relation_if_exists(distributed_relation) -%}
    {%- endif -%}
    {%- do create_schema(shard_relation) -%}
    {%- do run_query(create_empty_table_from_relation(shard_relation, structure_relation, sql_query)) -%}
    {%- do run_query(create_distributed_table(distributed_relation, shard_relation)) -%}
    {%- if sql_query is not none -%}
        {%- do run_query(clickhouse__insert_into(distributed_relation, sql_query, has_contract)) -%}
    {%- endif -%}
{%- endmacro -%}

{#- Of dbt-clickhouse too, which drops what has the name: a table that another run has put there is kept. -#}
{%- macro clickhouse__rename_relation(from_relation, to_relation, obj_type='table') -%}
    {%- do keep_run_lock() -%}
    {%- if '__dbt_' in to_relation.identifier -%}
        {%- do run_query('drop ' ~ obj_type ~ ' if exists ' ~ to_relation ~ ' ' ~ on_cluster_clause(to_relation)) -%}
    {%- endif -%}
    {%- do run_query('rename ' ~ obj_type ~ ' ' ~ from_relation ~ ' to ' ~ to_relation ~ ' ' ~ on_cluster_clause(from_relation)) -%}
{%- endmacro -%}

{#- Of an operation that cannot go on: the next need not wait for it. -#}
{%- macro refuse(message) -%}
    {%- do free_run_lock() -%}
    {{ exceptions.raise_compiler_error(message) }}
{%- endmacro -%}

{#- on-run-end, and the last line of an operation. An insert whose connection was lost goes on on the
    server, and what it appends is not there yet for the next run to see: it keeps the lock. -#}
{%- macro free_run_lock() -%}
    {%- if may_change() and is_shared_store() -%}
        {%- set lock = _newest_run_lock() -%}
        {%- if lock.owner == invocation_id -%}
            {%- if lock.is_running -%}
                {%- do log('a statement of this run lost its connection and still runs on the server: the lock stays until it has ended', info=true) -%}
            {%- else -%}
                {%- do run_query(_touch_run_lock(lock.number, 'free')) -%}
            {%- endif -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}

{%- macro _touch_run_lock(number, owner) -%}
    alter table {{ target.schema }}.run_lock_{{ number }}{{ on_cluster() }}
        modify comment '{{ owner }} {{ modules.datetime.datetime.utcnow().isoformat() }}'
{%- endmacro -%}

{%- macro _newest_run_lock() -%}
    {%- set answer = run_query(
        "with locks as ("
        ~ " select toUInt64OrZero(substring(name, 10)) as number, splitByChar(' ', comment)[1] as owner,"
        ~ " comment, dateDiff('second', metadata_modification_time, now()) as idle"
        ~ " from system.tables where database = " ~ sql_text(target.schema)
        ~ " and match(name, '^run_lock_[0-9]+$') order by number desc limit 1)"
        ~ " select number, owner, comment, idle,"
        ~ " (select count() from system.processes where position(query, 'system.processes') = 0"
        ~ " and length((select any(owner) from locks)) > 30"
        ~ " and position(query, concat('tokenledger run ', (select any(owner) from locks))) > 0)"
        ~ " as running from locks"
    ) -%}
    {%- if answer.rows | length == 0 -%}
        {{ return({'number': 0, 'owner': '', 'touched': '', 'idle_seconds': 0, 'is_running': false}) }}
    {%- endif -%}
    {%- set row = answer.rows[0] -%}
    {{ return({
        'number': row[0] | int, 'owner': row[1], 'touched': row[2],
        'idle_seconds': row[3] | int, 'is_running': row[4] | int > 0,
    }) }}
{%- endmacro -%}

{#- Make a lock and say whether it is ours; then older ones go. -#}
{%- macro _make_run_lock(number) -%}
    {%- do run_query(
        'create table if not exists ' ~ target.schema ~ '.run_lock_' ~ number ~ on_cluster()
        ~ " (nothing UInt8) engine = Null comment '" ~ invocation_id ~ " made'"
    ) -%}
    {%- set lock = _newest_run_lock() -%}
    {%- if lock.owner != invocation_id -%}
        {#- Overtaken: what we made is ours to remove, if we made it. -#}
        {%- set mine = run_query(
            'select 1 from system.tables where database = ' ~ sql_text(target.schema)
            ~ " and name = 'run_lock_" ~ number ~ "' and startsWith(comment, '" ~ invocation_id ~ "')"
        ) -%}
        {%- if mine.rows | length > 0 -%}
            {%- do run_query('drop table if exists ' ~ target.schema ~ '.run_lock_' ~ number ~ on_cluster()) -%}
        {%- endif -%}
        {{ return(false) }}
    {%- endif -%}
    {%- set older = run_query(
        'select name from system.tables where database = ' ~ sql_text(target.schema)
        ~ " and match(name, '^run_lock_[0-9]+$') and toUInt64OrZero(substring(name, 10)) < " ~ number
    ) -%}
    {%- for row in older.rows -%}
        {%- do run_query('drop table if exists ' ~ target.schema ~ '.' ~ row[0] ~ on_cluster()) -%}
    {%- endfor -%}
    {{ return(true) }}
{%- endmacro -%}
