{#
Read history again by the rules of now, from the payloads in llm_traces: nothing lands again.

    dbt run-operation reparse --args '{from: 2026-01-01, to: 2026-02-01}'               a report
    dbt run-operation reparse --args '{from: 2026-01-01, to: 2026-02-01, apply: true}'  as reported

`from` and `to` are times in UTC (`to` is exclusive); without them all of history is meant, whatever
the clocks said. Only rows that were read by other rules are looked at. The report (rows, tokens and
errors by provider and dialect, before and after) is printed and kept in reparse_reports; each trace
that would become different is listed in llm_traces_reparsed. Applying is refused without a report of the same range by the same
rules, and where payloads have been retired.

Applying builds a month's partition of llm_traces anew beside it, compares ids and all that parsing
does not touch, and swaps the partition in one atomic statement. Killed at any instant, it leaves
every partition either as it was or done; run again, it does the rest. Billing columns stay as they
are. Where a row becomes different its transformed_at is set, its rows in models that have one a
trace are deleted, and their batches are taken out of the ledgers of these models, so that the next
run makes them anew. Roll-ups by day follow by themselves: they compare fingerprints of
transformed_at.
-#}
{%- macro reparse(from=none, to=none, apply=false, skip_retired=false) -%}
    {%- set llm_traces = ref('llm_traces') -%}
    {#- Of a range without an end the report names times that few clocks say. -#}
    {%- set bounds = ['1900-01-01' if from is none else from | string, '2300-01-01' if to is none else to | string] -%}
    {%- for bound in bounds if not modules.re.fullmatch('\\d{4}-\\d\\d-\\d\\d([T ]\\d\\d:\\d\\d(:\\d\\d(\\.\\d{1,6})?)?)?', bound) -%}
        {{ exceptions.raise_compiler_error('reparse: ' ~ bound ~ ' is no time: write it like 2026-01-31 or 2026-01-31 12:00:00 (UTC).') }}
    {%- endfor -%}
    {%- set from_time = "parseDateTime64BestEffort('" ~ bounds[0] ~ "', 6, 'UTC')" -%}
    {%- set to_time = "parseDateTime64BestEffort('" ~ bounds[1] ~ "', 6, 'UTC')" -%}
    {%- set is_in_range = ('true' if from is none else 'created_at >= ' ~ from_time) ~ ' and ' ~ ('true' if to is none else 'created_at < ' ~ to_time) -%}
    {%- set is_retired = "response_json = '' and response_size_bytes > 0" -%}
    {%- set is_due = is_in_range ~ " and parser_version != '" ~ parser_version() ~ "' and not (" ~ is_retired ~ ')' -%}
    {%- do take_run_lock() -%}
    {%- do end_what_was_begun() -%}
    {%- do create_operations_tables() -%}
    {%- set retired = run_query(
        'select count(), min(created_at), max(created_at) from ' ~ llm_traces ~ ' where ' ~ is_in_range
        ~ " and parser_version != '" ~ parser_version() ~ "' and " ~ is_retired
    ).rows[0] -%}
    {%- if retired[0] | int > 0 and not skip_retired -%}
        {{ refuse(
            'reparse: the responses of ' ~ retired[0] ~ ' traces of this range, made from ' ~ retired[1] ~ ' to '
            ~ retired[2] ~ ', have been retired, so they cannot be read again. Choose a range without them, or '
            ~ "leave them as they are: --args '{skip_retired: true, ...}'."
        ) }}
    {%- endif -%}
    {%- if apply -%}
        {%- set seen = run_query(
            'select max(reported_at) from ' ~ source('operations', 'reparse_reports') ~ " where parser_version = '"
            ~ parser_version() ~ "' and from_time = " ~ from_time ~ ' and to_time = ' ~ to_time
        ).rows[0][0] -%}
        {%- if (seen | string).startswith('1970') -%}
            {{ refuse(
                'reparse: no report of this range by the rules of now. Look first: the same call without apply.'
            ) }}
        {%- endif -%}
        {%- do _reparse_apply(is_due) -%}
    {%- else -%}
        {%- do _reparse_report(is_due, from_time, to_time) -%}
    {%- endif -%}
    {%- do free_run_lock() -%}
{%- endmacro -%}

{#- The columns of llm_traces that parsing decides: name -> type, in contract order. -#}
{%- macro parsed_columns() -%}
    {%- set parsed = {} -%}
    {%- for column in graph.nodes['model.' ~ project_name ~ '.llm_traces'].columns.values() if column.name in response_columns() -%}
        {%- do parsed.update({column.name: column.data_type}) -%}
    {%- endfor -%}
    {{ return(parsed) }}
{%- endmacro -%}

{#- Rows of llm_traces, read again: the parsed columns as of now, and as `stored` what they were. -#}
{%- macro _reparsed(condition) -%}
    {%- set names = parsed_columns().keys() | list -%}
    {%- set stored -%}
        (
            select
                * except (response_json, {{ names | join(', ') }}),
                response_json,
                tuple({{ names | join(', ') }}) as stored
            from {{ ref('llm_traces') }}
            where {{ condition }}
        )
    {%- endset -%}
    select
        * except ({{ response_columns().keys() | join(', ') }}),
        {%- for name, type in parsed_columns().items() %}
        {{ name }}::{{ type }} as {{ name }},
        {%- endfor %}
        tuple(
            {%- for name, type in parsed_columns().items() %}
            {{ name }}::{{ type }}{{ ',' if not loop.last }}
            {%- endfor %}
        ) as parsed
    from ({{ parse_responses(stored) }})
{%- endmacro -%}

{%- macro _reparse_report(is_due, from_time, to_time) -%}
    {%- set names = parsed_columns().keys() | list -%}
    {%- set types = parsed_columns().values() | list -%}
    {%- set changes = api.Relation.create(database='', schema=target.schema, identifier='llm_traces_reparsed') -%}
    {%- set place = {} -%}
    {%- for name in names -%}{%- do place.update({name: 'stored.' ~ loop.index}) -%}{%- endfor -%}
    {%- do run_query('drop table if exists ' ~ changes ~ on_cluster() ~ ' sync') -%}
    {%- set table -%}
        create table {{ changes }}{{ on_cluster() }}
        (
            id String,
            organization_id LowCardinality(String),
            provider LowCardinality(String),
            created_at DateTime64(6, 'UTC'),
            changed_columns Array(LowCardinality(String)) comment 'Empty when the row stays as it is',
            {%- for when in ['before', 'after'] %}
            {{ when }} Tuple({% for name in names %}{{ name }} {{ types[loop.index0] | replace('LowCardinality(String)', 'String') }}{{ ', ' if not loop.last }}{% endfor %}){{ ',' if not loop.last }}
            {%- endfor %}
        )
        engine = {{ ledger_engine() }}
        order by (organization_id, created_at, id)
    {%- endset -%}
    {%- do run_query(table) -%}
    {#- Narrow, and one parse of the history: rows that stay are kept in it too, to be counted. -#}
    {%- do run_query(
        'insert into ' ~ changes ~ ' select id, organization_id, provider, created_at,'
        ~ ' arrayFilter(name -> name != \'\', ['
        ~ _differences(names) ~ ']), stored, parsed from (' ~ _reparsed(is_due) ~ ')'
    ) -%}
    {%- set counted -%}
        select
            provider,
            before.usage_dialect as dialect_before,
            after.usage_dialect as dialect_after,
            count() as traces,
            countIf(notEmpty(changed_columns)) as changed,
            {%- for tokens in ['prompt_tokens', 'completion_tokens'] %}
            sum(before.{{ tokens }}) as {{ tokens }}_before,
            sum(after.{{ tokens }}) as {{ tokens }}_after,
            {%- endfor %}
            countIf(before.is_error) as errors_before,
            countIf(after.is_error) as errors_after
        from {{ changes }}
        group by provider, dialect_before, dialect_after
        order by changed desc, provider, dialect_before, dialect_after
    {%- endset -%}
    {%- do run_query(
        'insert into ' ~ source('operations', 'reparse_reports') ~ " select '" ~ parser_version() ~ "', "
        ~ from_time ~ ', ' ~ to_time ~ ", *, now64(3, 'UTC') from (" ~ counted
        ~ " union all select '', '', '', 0, 0, 0, 0, 0, 0, 0, 0)"
    ) -%}
    {%- set report = run_query(counted) -%}
    {%- if report.rows | length == 0 -%}
        {%- do print('reparse: every trace of this range was read by the rules of now (' ~ parser_version() ~ ')') -%}
    {%- else -%}
        {%- do report.print_table(max_rows=none, max_columns=none, max_column_width=40) -%}
        {%- do run_and_wait('alter table ' ~ changes ~ on_cluster() ~ ' delete where empty(changed_columns)') -%}
        {%- do print('each trace that would change, before and after: ' ~ changes ~ '. Nothing is changed yet: apply: true does it.') -%}
    {%- endif -%}
{%- endmacro -%}

{#- For each parsed column its name where it differs, else ''. Null equals null. -#}
{%- macro _differences(names) -%}
    {%- set parts = [] -%}
    {%- for name in names -%}
        {%- do parts.append("if(stored." ~ loop.index ~ " is not distinct from parsed." ~ loop.index ~ ", '', '" ~ name ~ "')") -%}
    {%- endfor -%}
    {{ return(parts | join(', ')) }}
{%- endmacro -%}

{%- macro _reparse_apply(is_due) -%}
    {%- set llm_traces = ref('llm_traces') -%}
    {%- if storage_of(llm_traces) != llm_traces -%}
        {{ refuse('reparse: a sharded llm_traces cannot be reparsed, as months are swapped in one by one. Build it anew on purpose (docs/retention.md, Rebuilding llm_traces).') }}
    {%- endif -%}
    {#- By a name of this call's own: who slept and was taken over swaps in nothing of another. -#}
    {%- set side = llm_traces.incorporate(path={'identifier': 'llm_traces__reparse_' ~ local_md5(invocation_id)}) -%}
    {%- set names = parsed_columns().keys() | list -%}
    {%- set contract = graph.nodes['model.' ~ project_name ~ '.llm_traces'].columns.keys() | list -%}
    {%- set kept = [] -%}
    {%- for name in contract if name not in names and name not in ['transformed_at', 'parser_version'] -%}
        {%- do kept.append('`' ~ name ~ '`') -%}
    {%- endfor -%}
    {%- set quoted = [] -%}
    {%- for name in contract -%}{%- do quoted.append('`' ~ name ~ '`') -%}{%- endfor -%}
    {%- set proof = 'count(), uniqExact(id), sum(cityHash64(tuple(' ~ kept | join(', ') ~ ')))' -%}
    {%- set months = run_query(
        'select toString(toYYYYMM(created_at)) as month, count() as due from ' ~ llm_traces ~ ' where ' ~ is_due
        ~ ' group by month order by month'
    ) -%}
    {%- if months.rows | length == 0 -%}
        {%- do print('reparse: nothing to do, every trace of this range was read by the rules of now') -%}
    {%- endif -%}
    {%- for row in months.rows -%}
        {%- set is_month = 'toYYYYMM(created_at) = ' ~ row[0] -%}
        {%- set began = run_query("select toString(now64(3, 'UTC'))").rows[0][0] -%}
        {%- do drop_helper(side.identifier) -%}
        {%- do run_query('create table ' ~ side ~ on_cluster() ~ ' as ' ~ llm_traces) -%}
        {%- set expressions = [] -%}
        {%- for name in contract -%}
            {%- if name == 'transformed_at' -%}
                {%- do expressions.append("if(stored is not distinct from parsed, transformed_at, now64(3, 'UTC')) as transformed_at") -%}
            {%- elif name == 'parser_version' -%}
                {%- do expressions.append("'" ~ parser_version() ~ "' as parser_version") -%}
            {%- else -%}
                {%- do expressions.append('`' ~ name ~ '`') -%}
            {%- endif -%}
        {%- endfor -%}
        {%- do run_query(
            'insert into ' ~ side ~ ' (' ~ quoted | join(', ') ~ ') select ' ~ quoted | join(', ') ~ ' from ' ~ llm_traces
            ~ ' where ' ~ is_month ~ ' and not (' ~ is_due ~ ')'
        ) -%}
        {%- do run_query(
            'insert into ' ~ side ~ ' (' ~ quoted | join(', ') ~ ') select ' ~ expressions | join(', ') ~ ' from ('
            ~ _reparsed(is_month ~ ' and ' ~ is_due) ~ ')'
        ) -%}
        {%- do keep_run_lock() -%}
        {%- set was = run_query('select ' ~ proof ~ ' from ' ~ llm_traces ~ ' where ' ~ is_month).rows[0] -%}
        {%- set will_be = run_query('select ' ~ proof ~ ' from ' ~ side).rows[0] -%}
        {%- if was | string != will_be | string -%}
            {{ refuse(
                'reparse: month ' ~ row[0] ~ ' changed while it was read, or did not come out whole; it was left as '
                ~ 'it is. Run the same call again.'
            ) }}
        {%- endif -%}
        {#- Models made of llm_traces first: killed before the swap, they are made anew from what there is. And of
            these the ledgers first: what is in one is not looked at. -#}
        {%- set changed = 'from ' ~ side ~ " where transformed_at >= '" ~ began ~ "'" -%}
        {%- set made = built_tables() -%}
        {%- for table in made if table.is_ledger and table.relation.identifier != 'transformed_batches' -%}
            {%- do run_and_wait('alter table ' ~ table.relation ~ on_cluster() ~ ' delete where batch_id in (select batch_id ' ~ changed ~ ')') -%}
        {%- endfor -%}
        {%- for table in made if table.is_by_trace -%}
            {%- do run_and_wait('alter table ' ~ table.relation ~ on_cluster() ~ ' delete where id in (select id ' ~ changed ~ ')') -%}
        {%- endfor -%}
        {%- do keep_run_lock() -%}
        {%- do run_query('alter table ' ~ llm_traces ~ on_cluster() ~ " replace partition id '" ~ row[0] ~ "' from " ~ side) -%}
        {%- do print('reparse: month ' ~ row[0] ~ ' done, ' ~ row[1] ~ ' traces read again') -%}
    {%- endfor -%}
    {%- do drop_helper(side.identifier) -%}
{%- endmacro -%}
