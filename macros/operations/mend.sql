{#
A damaged file does not stop the engine: at its start it sets the part aside ("broken on start"), and
the rows are missing without an error. So a run refuses to start while such a part lies there.

    dbt run-operation mend --args '{dry_run: true}'    what is missing
    dbt run-operation mend                             make the next run bring it back
    dbt run-operation mend --args '{forget: true}'     without what no other table knows

What is lost from llm_traces or a model made of it comes back from the raw tables by the next run:
mend takes the batches out of the ledgers of what was built. What is lost from the raw tables comes
back by landing the same source again: mend takes such batches out of raw_batches, notes where they
were cut, and names their sources; the run after that looks again at what was built of them. What is
left of such a batch is built and charged meanwhile, as its source may be gone
(int_batches__pending). Where neither helps, restore a backup first (docs/operate.md): what was landed,
lost and erased is known by the ledgers alone, and where one of these is damaged nothing is done without
`forget`. The parts set aside are dropped last.
-#}
{%- macro refuse_broken_parts() -%}
    {%- if execute and flags.WHICH != 'test' and not var('accept_broken_parts', false) -%}
        {%- set broken = _broken_parts() -%}
        {%- if broken.rows | length > 0 -%}
            {{ exceptions.raise_compiler_error(
                'the store is damaged: ' ~ broken.rows | length ~ ' parts were set aside because their files are broken, '
                ~ 'the first ' ~ broken.rows[0][1] ~ ' of ' ~ broken.rows[0][0] ~ ', and their rows are missing. Restore a '
                ~ 'backup, or run: dbt run-operation mend. To go on without them: --vars "accept_broken_parts: true".'
            ) }}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}

{%- macro _broken_parts() -%}
    {{ return(run_query(
        "select table, name from system.detached_parts where database = " ~ sql_text(target.schema)
        ~ " and startsWith(reason, 'broken') order by table, name"
    )) }}
{%- endmacro -%}

{#- on-run-start: a batch that was lost, and has 0 rows where it was built of what was left of it, has landed
    again: it is looked at again, as what was built of it may be lost as well. -#}
{%- macro reopen_what_came_again() -%}
    {%- if may_change() -%}
        {%- set without_rows = 'select batch_id from ' ~ target.schema ~ '.transformed_batches where `rows` = 0' -%}
        {%- do _reopen(
            'batch_id in (' ~ without_rows ~ ') and batch_id in (select batch_id from ' ~ source('raw', 'raw_batches')
            ~ ' where `rows` > 0 and batch_id in (' ~ without_rows ~ '))'
        ) -%}
    {%- endif -%}
{%- endmacro -%}

{#- Take batches out of the ledgers of what was built. -#}
{%- macro _reopen(condition) -%}
    {%- for name in ['costed_batches', 'transformed_batches'] -%}
        {%- set ledger = api.Relation.create(database='', schema=target.schema, identifier=name, type='table') -%}
        {%- if load_relation(ledger) is not none
            and run_query('select count() from ' ~ ledger ~ ' where ' ~ condition).rows[0][0] | int > 0 -%}
            {%- do run_and_wait('alter table ' ~ storage_of(ledger) ~ on_cluster() ~ ' delete where ' ~ condition) -%}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro -%}

{#- pre_hook of llm_trace_costs: what comes after a loss may be another arrival than the one that is costed,
    or of another time, where that is the time of landing. The times bound what is read. -#}
{%- macro drop_costs_of_other_arrivals() -%}
    {%- if execute and is_incremental() -%}
        {%- set orphaned = source('operations', 'orphaned_costs') -%}
        {%- set times = run_query('select count(), toString(min(first_created_at)), toString(max(last_created_at)) from ' ~ orphaned).rows[0] -%}
        {%- if times[0] | int > 0 -%}
            {%- set pending = ref('int_costs__pending') -%}
            {%- set place = 'id, batch_id, created_at' -%}
            {%- set condition = 'batch_id in (select batch_id from ' ~ orphaned ~ ") and created_at between '" ~ times[1] ~ "' and '" ~ times[2]
                ~ "' and id in (select id from " ~ pending ~ ') and (' ~ place ~ ') not in (select ' ~ place ~ ' from ' ~ pending ~ ')' -%}
            {%- if run_query('select count() from ' ~ this ~ ' where ' ~ condition).rows[0][0] | int > 0 -%}
                {%- do run_and_wait('alter table ' ~ storage_of(this) ~ on_cluster() ~ ' delete where ' ~ condition) -%}
            {%- endif -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}

{#- Batches that were landed whole, and are not whole any more: a select of batch_id. `within`: of these alone. -#}
{%- macro short_batches(within=none) -%}
    {%- set looked_at = ' where batch_id in (' ~ within ~ ')' if within else '' -%}
    {%- set short = [] -%}
    {%- for raw_table, counted in {'raw_traces': 'rows', 'raw_rejects': 'rejects'}.items() -%}
        {%- do short.append(
            "select batch_id from (select batch_id, `" ~ counted ~ "` from " ~ source('raw', 'raw_batches') ~ looked_at ~ ") as batches left join ("
            ~ " select batch_id, uniqExact(position) as found from (select batch_id, position from " ~ source('raw', raw_table)
            ~ " union all " ~ erased_positions(raw_table) ~ ")" ~ looked_at ~ " group by batch_id) as held on batches.batch_id = held.batch_id"
            ~ " where batches.`" ~ counted ~ "` > held.found and batches.batch_id not in (" ~ whole_retired(raw_table) ~ ")"
        ) -%}
    {%- endfor -%}
    {{ return(short | join(' union distinct ')) }}
{%- endmacro -%}

{#- The short ones, and where a replay is short whose rejects have been retired since, what it goes back to: the
    file has these lines still, and is landed again only if its batch is not in the ledger. -#}
{%- macro _to_land_again() -%}
    {%- set short = short_batches() -%}
    {%- set batches = source('raw', 'raw_batches') -%}
    {%- set retired = whole_retired('raw_rejects') -%}
    {%- set replays = "startsWith(source, 'replay/') and substring(source, length('replay/') + 1) in (" ~ retired ~ ')' -%}
    {%- set lost = 'select batch_id from ' ~ source('raw', 'raw_lost_batches') ~ ' where batch_id in (' ~ lost_batches() ~ ') and '
        ~ replays ~ ' and source not in (select source from ' ~ batches ~ " where startsWith(source, 'replay/'))" -%}
    {%- if run_query('select count() from (select batch_id from ' ~ batches ~ ' where ' ~ replays ~ ' union all ' ~ lost ~ ')').rows[0][0] | int == 0 -%}
        {{ return(short) }}
    {%- endif -%}
    {{ return(
        short ~ ' union distinct select batch_id from ' ~ batches ~ ' where rejects > 0 and batch_id in (' ~ retired ~ ') and '
        ~ first_batch() ~ ' in (select ' ~ first_batch() ~ ' from (select batch_id from ' ~ batches ~ ' where ' ~ replays
        ~ ' and batch_id in (' ~ short ~ ') union all ' ~ lost ~ '))'
    ) }}
{%- endmacro -%}

{#- Batches that mend took out of the ledger, and that have not landed again: a select of batch_id. -#}
{%- macro lost_batches() -%}
    select batch_id from {{ source('raw', 'raw_lost_batches') }}
    where batch_id not in (select batch_id from {{ source('raw', 'raw_batches') }})
{%- endmacro -%}

{%- macro mend(dry_run=false, forget=false) -%}
    {%- if not dry_run -%}
        {%- do take_run_lock() -%}
        {%- do end_what_was_begun(has_to_end=false) -%}
    {%- endif -%}
    {%- do create_raw_tables() -%}
    {%- do create_operations_tables() -%}
    {%- set broken = _broken_parts() -%}
    {%- set damaged = [] -%}
    {%- for row in broken.rows -%}
        {%- do print('set aside as broken: part ' ~ row[1] ~ ' of ' ~ row[0]) -%}
        {%- do damaged.append(row[0]) -%}
    {%- endfor -%}
    {#- What was landed, lost and erased: each knows what no other table does. -#}
    {%- set memories = ['raw_batches', 'raw_lost_batches', 'retired_batches'] -%}
    {%- set forgotten = damaged | unique | select('in', memories) | join(', ') -%}
    {%- if forgotten and not forget -%}
        {{ refuse(
            'mend: what is lost of ' ~ forgotten ~ ' stands in no other table: what landed, and where it was cut, or what '
            ~ 'was erased. Restore a backup; nothing was done. Where there is none: --args "{forget: true}" goes on without. Then '
            ~ 'a file that is landed again is landed from its beginning, and what killed loaders left over is built, records without an id as other traces; and what '
            ~ 'was erased comes back where it is landed again: erase it again.'
        ) }}
    {%- endif -%}
    {#- As batches that are lost: what they hold is built, and whole once their source has landed again. -#}
    {%- if ('raw_batches' in damaged or 'raw_lost_batches' in damaged) and not dry_run -%}
        {%- set unknown = [] -%}
        {%- for raw_table in ['raw_traces', 'raw_rejects'] -%}
            {%- do unknown.append(
                "select batch_id, position, '" ~ raw_table ~ "' as raw_table from " ~ source('raw', raw_table) ~ ' where batch_id not in (select batch_id from ' ~ source('raw', 'raw_batches')
                ~ ' union all select batch_id from ' ~ source('raw', 'raw_lost_batches') ~ ')'
            ) -%}
        {%- endfor -%}
        {%- do run_query(
            'insert into ' ~ source('raw', 'raw_lost_batches')
            ~ ' (batch_id, source, start_offset, end_offset, first_line, `rows`, rejects, lost_at)'
            ~ " select batch_id, '', 0, 0, 0, uniqExactIf(position, raw_table = 'raw_traces'), uniqExactIf(position, raw_table ="
            ~ " 'raw_rejects'), now64(3, 'UTC') from (" ~ unknown | join(' union all ') ~ ') group by batch_id'
        ) -%}
    {%- endif -%}

    {#- No ledger has the files of these: only their rows do, as far as they are left. A statement that was
        lost counts as known when it is landed again, so all of them are to follow in their order. -#}
    {%- for table, verb in {'raw_billing_accounts': 'billing', 'raw_provider_bills': 'bills'}.items()
        if table in damaged -%}
        {%- do print(table ~ ' is not whole any more, and no ledger has its files. Land all of them again, the oldest first, by '
            ~ 'python -m loader ' ~ verb ~ ' --restate FILE. Those of which rows are left, oldest first:') -%}
        {%- do run_query(
            'select source, count() as `rows`, min(known_at) as known_at from ' ~ source('billing', table)
            ~ ' group by source order by known_at, source'
        ).print_table(max_rows=none, max_columns=none, max_column_width=100) -%}
    {%- endfor -%}

    {%- set short = _to_land_again() -%}
    {%- set llm_traces = ref('llm_traces') -%}
    {#- The ledger may have a batch twice: with more of `continues` than at first. -#}
    {%- set sources = run_query(
        'select source, count() as batches, sum(`rows`) as `rows` from (select distinct batch_id, source, `rows` from '
        ~ source('raw', 'raw_batches') ~ ' where batch_id in (' ~ short ~ ')) group by source order by source'
    ) -%}
    {%- if sources.rows | length > 0 -%}
        {%- do print('not whole any more in the raw tables; land these sources again:') -%}
        {%- do sources.print_table(max_rows=none, max_columns=none, max_column_width=100) -%}
    {%- endif -%}

    {%- if load_relation(llm_traces) is not none -%}
        {%- do _mend_what_was_built(llm_traces, short, 'trace_conflicts' in damaged, dry_run) -%}
    {%- endif -%}
    {%- if not dry_run -%}
        {#- Before they leave the ledger: what lands again before a run is to be looked at too. -#}
        {%- do _reopen('batch_id in (' ~ short ~ ' union distinct ' ~ lost_batches() ~ ')') -%}
        {%- if sources.rows | length > 0 -%}
            {#- Where they were cut: cut otherwise, their records would be others, and some of them twice. What is
                noted is deleted: asked again while the ledger's parts are rewritten, it would be others. -#}
            {%- set lost_at = "toDateTime64('" ~ run_query("select toString(now64(3, 'UTC'))").rows[0][0] ~ "', 3, 'UTC')" -%}
            {%- do run_query(
                'insert into ' ~ source('raw', 'raw_lost_batches')
                ~ ' (batch_id, source, start_offset, end_offset, first_line, `rows`, rejects, lost_at, continues)'
                ~ ' select batch_id, source, start_offset, end_offset, first_line, `rows`, rejects, ' ~ lost_at ~ ', continues'
                ~ ' from ' ~ source('raw', 'raw_batches') ~ ' where batch_id in (' ~ short ~ ')'
            ) -%}
            {%- do run_and_wait(
                'alter table ' ~ storage_of(source('raw', 'raw_batches')) ~ on_cluster() ~ ' delete where batch_id in (select batch_id from '
                ~ source('raw', 'raw_lost_batches') ~ ' where lost_at = ' ~ lost_at ~ ')'
            ) -%}
        {%- endif -%}
        {%- for row in broken.rows -%}
            {%- do run_query(
                'alter table ' ~ target.schema ~ '.`' ~ row[0] ~ "` drop detached part '" ~ row[1] ~ "' settings allow_drop_detached = 1"
            ) -%}
        {%- endfor -%}
        {%- do free_run_lock() -%}
    {%- endif -%}
{%- endmacro -%}

{#- Take out of the ledgers what is to be built again, and what was built of a trace that is lost for good. -#}
{%- macro _mend_what_was_built(llm_traces, short, has_lost_conflicts, dry_run) -%}
    {#- No run makes such rows; each would be charged twice. -#}
    {%- for table in [llm_traces, ref('llm_trace_costs')] if load_relation(table) is not none -%}
        {%- set doubled = run_query('select count() - uniqExact(id) from ' ~ table).rows[0][0] | int -%}
        {%- if doubled > 0 -%}
            {%- do print(table.identifier ~ ' holds ' ~ doubled ~ ' rows of ids that stand there already. Build it anew on purpose '
                ~ '(docs/retention.md, Rebuilding llm_traces), or restore a backup.') -%}
        {%- endif -%}
    {%- endfor -%}

    {#- What was built of a trace that is lost for good, or gives its place to another arrival of its id. -#}
    {%- set whole = 'select id, batch_id, created_at from ' ~ ref('int_traces__unioned') ~ ' where batch_id not in (' ~ short ~ ')' -%}
    {%- set tables = built_tables() -%}
    {%- for table in tables if table.is_by_trace -%}
        {%- set condition = '(id, batch_id) not in (select id, batch_id from ' ~ llm_traces ~ ') and (id in (select id from ' ~ llm_traces
            ~ ') or (id, batch_id, created_at) not in (' ~ whole ~ ') and (batch_id not in (' ~ short ~ ' union distinct ' ~ lost_batches() ~ ') or id in (select id from (' ~ whole ~ '))))' -%}
        {%- set count = run_query('select count() from ' ~ table.relation ~ ' where ' ~ condition).rows[0][0] | int -%}
        {%- if count > 0 -%}
            {%- do print(table.relation.identifier ~ ': ' ~ count ~ ' rows of traces that are lost') -%}
            {%- if not dry_run -%}
                {#- Another arrival may be the trace since, and be counted as built by these. -#}
                {%- for ledger in tables if ledger.is_ledger and ledger.relation.identifier != 'transformed_batches' -%}
                    {%- do run_and_wait('alter table ' ~ storage_of(ledger.relation) ~ on_cluster() ~ ' delete where batch_id in (select batch_id from '
                        ~ llm_traces ~ ' where id in (select id from ' ~ table.relation ~ ' where ' ~ condition ~ '))') -%}
                {%- endfor -%}
                {%- do run_and_wait('alter table ' ~ storage_of(table.relation) ~ on_cluster() ~ ' delete where ' ~ condition) -%}
            {%- endif -%}
        {%- endif -%}
    {%- endfor -%}

    {%- if not dry_run and load_relation(ref('llm_trace_costs')) is not none -%}
        {%- do run_query(
            'insert into ' ~ source('operations', 'orphaned_costs') ~ " select batch_id, min(created_at), max(created_at), now64(3, 'UTC') from "
            ~ ref('llm_trace_costs') ~ ' where (id, batch_id, created_at) not in (select id, batch_id, created_at from ' ~ llm_traces ~ ') group by batch_id'
        ) -%}
    {%- endif -%}

    {#- Batches that were built, and are not whole any more in what was built of them. -#}
    {%- set unbuilt = 'select batch_id from ' ~ ref('int_traces__unioned') ~ ' where id not in (select id from ' ~ llm_traces ~ ')' -%}
    {%- set lost = [unbuilt] -%}
    {#- Conflicts are found while a batch is pending: of an arrival that is not the trace it may have lost one. -#}
    {%- set to_look_at = unbuilt ~ (
        ' union distinct select batch_id from ' ~ ref('int_traces__unioned') ~ ' where (id, batch_id, position) not in (select id, '
        ~ 'batch_id, position from ' ~ llm_traces ~ ')' if has_lost_conflicts else ''
    ) -%}
    {%- for table in tables if table.is_by_trace -%}
        {%- do lost.append('select batch_id from ' ~ llm_traces ~ ' where id not in (select id from ' ~ table.relation ~ ')') -%}
    {%- endfor -%}
    {%- for table in tables if table.is_ledger -%}
        {%- set condition = 'batch_id in ('
            ~ (to_look_at if table.relation.identifier == 'transformed_batches' else lost | join(' union distinct ')) ~ ')' -%}
        {%- set count = run_query('select count() from ' ~ table.relation ~ ' where ' ~ condition).rows[0][0] -%}
        {%- do print(table.relation.identifier ~ ': ' ~ count ~ ' batches to build again') -%}
        {%- if not dry_run and count | int > 0 -%}
            {%- do run_and_wait('alter table ' ~ storage_of(table.relation) ~ on_cluster() ~ ' delete where ' ~ condition) -%}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro -%}
