{#
Erase, on request, the traces of an organization, an end user, a customer or an agent: raw rows,
rejects, llm_traces and every model made of it.

    dbt run-operation erase --args '{organization: org-1, dry_run: true}'      what would go
    dbt run-operation erase --args '{organization: org-1}'
    dbt run-operation erase --args '{user: user-7, organization: org-1}'

One of organization, user, customer, agent is needed; several narrow it (all must hold). `user` is
the envelope's user_id, which only raw_traces holds; `customer` the billing customer; `agent` the
agent_id. A reject cannot be read, so it goes when its bytes hold every one of the ids as a JSON
string.

Order, so that a kill at any instant leaves a state that the same call completes, and no run brings
anything back: what is to go is listed, batches to look at again are reopened, what will go from the
raw tables is recorded in retired_batches, raw rows go, then derived models, then llm_traces, and the
list last. Roll-ups by day follow by themselves: a day's fingerprint changes with its traces.
-#}
{%- macro erase(organization=none, user=none, customer=none, agent=none, dry_run=false) -%}
    {%- set subject = {'organization': organization, 'user': user, 'customer': customer, 'agent': agent} -%}
    {%- set given = [] -%}
    {%- for kind, value in subject.items() if value is not none -%}
        {%- if value | string | trim == '' -%}
            {{ exceptions.raise_compiler_error('erase: ' ~ kind ~ ' is empty, which is every trace without one. Name it.') }}
        {%- endif -%}
        {%- do given.append(kind) -%}
    {%- endfor -%}
    {%- if not given -%}
        {{ exceptions.raise_compiler_error("erase: whose traces? --args '{organization: ...}', or user, customer, agent.") }}
    {%- endif -%}

    {%- if not dry_run -%}{%- do take_run_lock() -%}{%- endif -%}
    {%- do create_operations_tables() -%}

    {%- set llm_traces = ref('llm_traces') -%}
    {%- set raw_traces = source('raw', 'raw_traces') -%}
    {%- set raw_rejects = source('raw', 'raw_rejects') -%}
    {%- set retired = source('operations', 'retired_batches') -%}

    {#- What the subject owns. In raw rows all four are readable; llm_traces holds three of them. -#}
    {%- set conditions = [] -%}
    {%- for kind, column in {'organization': 'organization_id', 'customer': 'trace_customer_id', 'agent': 'agent_id'}.items() if kind in given -%}
        {%- do conditions.append(column ~ ' = ' ~ sql_text(subject[kind])) -%}
    {%- endfor -%}
    {%- if user is not none -%}
        {%- do conditions.append(
            '(batch_id, position) in (select batch_id, position from ' ~ raw_traces
            ~ ' where JSONExtract(' ~ readable_json('envelope_json') ~ ", 'user_id', 'Nullable(String)') = " ~ sql_text(user) ~ ')'
        ) -%}
    {%- endif -%}
    {%- set owned_raw = 'select batch_id, position, id, organization_id, created_at from ' ~ ref('int_traces__unioned')
        ~ ' where ' ~ conditions | join(' and ') -%}
    {%- set needles = [] -%}
    {%- for kind in given -%}
        {%- do needles.append('position(raw, toJSONString(' ~ sql_text(subject[kind]) ~ ')) > 0') -%}
    {%- endfor -%}
    {%- set owned_rejects = 'select batch_id, position from ' ~ raw_rejects ~ ' where ' ~ needles | join(' and ') -%}

    {#- The traces: those that llm_traces says are theirs, and those whose own arrival is. -#}
    {%- set trace_conditions = [] -%}
    {%- for kind, column in {'organization': 'organization_id', 'customer': 'billing_customer_id', 'agent': 'agent_id'}.items() if kind in given -%}
        {%- do trace_conditions.append(column ~ ' = ' ~ sql_text(subject[kind])) -%}
    {%- endfor -%}
    {%- set by_arrival = '(id, batch_id, position) in (select id, batch_id, position from (' ~ owned_raw ~ '))' -%}
    {%- set is_owned = by_arrival if user is not none
        else '((' ~ trace_conditions | join(' and ') ~ ') or ' ~ by_arrival ~ ')' -%}

    {%- set report = run_query(
        "select * from (select 'raw_traces' as `table`, count() as `rows` from (" ~ owned_raw ~ ")"
        ~ " union all select 'raw_rejects', count() from (" ~ owned_rejects ~ ")"
        ~ " union all select 'llm_traces', count() from " ~ llm_traces ~ " where " ~ is_owned
        ~ ") order by `table`"
    ) -%}
    {%- do print('erasing the traces of ' ~ given | join(' and ') ~ (' (dry run: nothing is deleted)' if dry_run else '')) -%}
    {%- do report.print_table(max_columns=none) -%}
    {%- if user is not none -%}
        {%- set unknown = run_query(
            "select count() from " ~ retired ~ " where raw_table = 'raw_traces' and reason = 'retention'"
        ).rows[0][0] | int -%}
        {%- if unknown > 0 -%}
            {%- do print('note: ' ~ unknown ~ ' batches have no raw rows any more (retention), and only those name the user. '
                ~ 'Traces of these batches were not looked at: erase them by agent or customer.') -%}
        {%- endif -%}
    {%- endif -%}

    {%- if not dry_run -%}
        {#- The work list outlives a kill: it is what the ids are known from once raw rows are gone. -#}
        {%- set list = api.Relation.create(database='', schema=target.schema, identifier='erase_list') -%}
        {%- do run_query(
            'create table if not exists ' ~ list ~ on_cluster()
            ~ ' (id String, batch_id String, position UInt32, organization_id String, created_date Date32)'
            ~ ' engine = ' ~ ledger_engine() ~ ' order by id'
        ) -%}
        {%- do run_query(
            'insert into ' ~ list ~ ' select distinct id, batch_id, position, organization_id, toDate32(created_at) from ('
            ~ owned_raw ~ ' union all select batch_id, position, id, organization_id::String, created_at from ' ~ llm_traces
            ~ ' where ' ~ is_owned ~ ')'
        ) -%}
        {%- set ids = 'select id from ' ~ list -%}

        {#- Of an id whose trace goes, an arrival that stays is the trace from now on: look again. -#}
        {%- for ledger in built_tables() if 'batch_id' in ledger.columns and 'id' not in ledger.columns -%}
            {%- do run_and_wait(
                'alter table ' ~ storage_of(ledger.relation) ~ on_cluster() ~ ' delete where batch_id in ('
                ~ 'select batch_id from ' ~ ref('int_traces__unioned') ~ ' where id in (' ~ ids ~ ')'
                ~ ' and (batch_id, position) not in (select batch_id, position from ' ~ list ~ '))'
            ) -%}
        {%- endfor -%}
        {%- for raw_table, owned in {'raw_traces': 'select batch_id, position from ' ~ list, 'raw_rejects': owned_rejects}.items() -%}
            {%- do run_query(
                'insert into ' ~ retired ~ ' (batch_id, raw_table, reason, is_whole, positions, retired_at)'
                ~ " select batch_id, '" ~ raw_table ~ "', 'erasure', false, groupUniqArray(position), now64(3, 'UTC')"
                ~ ' from ' ~ source('raw', raw_table) ~ ' where (batch_id, position) in (' ~ owned ~ ') group by batch_id'
            ) -%}
            {%- do run_and_wait(
                'alter table ' ~ storage_of(source('raw', raw_table)) ~ on_cluster()
                ~ ' delete where (batch_id, position) in ('
                ~ "select batch_id, arrayJoin(positions) from " ~ retired
                ~ " where raw_table = '" ~ raw_table ~ "' and reason = 'erasure')"
            ) -%}
        {%- endfor -%}
        {%- do _erase_from_models(list) -%}
        {%- do run_and_wait(
            'alter table ' ~ storage_of(llm_traces) ~ on_cluster() ~ ' delete where (id, batch_id, position) in '
            ~ '(select id, batch_id, position from ' ~ list ~ ')'
        ) -%}
        {%- set hashed = [] -%}
        {%- for kind in given -%}{%- do hashed.append(subject[kind] | string) -%}{%- endfor -%}
        {%- do run_query(
            'insert into ' ~ source('operations', 'erasures')
            ~ " select " ~ sql_text(given | join(', ')) ~ ", lower(hex(SHA256(" ~ sql_text(hashed | join('\n')) ~ "))), "
            ~ report.rows[2][1] ~ ", " ~ report.rows[1][1] ~ ", " ~ report.rows[0][1] ~ ", now64(3, 'UTC')"
        ) -%}
        {%- do run_query('drop table if exists ' ~ list ~ on_cluster() ~ ' sync') -%}
        {%- do free_run_lock() -%}
        {%- do print('erased. Roll-ups are made anew by the next dbt run. Backups and files that were landed are not touched.') -%}
    {%- endif -%}
{%- endmacro -%}

{#- By trace where a table has an id, else by organization and day, which the next run builds anew. -#}
{%- macro _erase_from_models(list) -%}
    {%- set places = 'select id, batch_id, position from ' ~ list -%}
    {%- for table in built_tables() -%}
        {%- set dates = [] -%}
        {%- for column in table.columns if column.endswith('_date') -%}{%- do dates.append(column) -%}{%- endfor -%}
        {%- if 'kept_batch_id' in table.columns -%}
            {%- set condition = '(id, batch_id, position) in (' ~ places
                ~ ') or (id, kept_batch_id, kept_position) in (' ~ places ~ ')' -%}
        {%- elif 'id' in table.columns -%}
            {%- set condition = 'id in (select id from ' ~ list ~ ')' -%}
        {%- elif 'organization_id' in table.columns and dates -%}
            {#- Days may be cut in another time zone than UTC: one day more on either side. -#}
            {%- set condition = '(organization_id, ' ~ dates[0] ~ ') in (select organization_id,'
                ~ ' arrayJoin([created_date - 1, created_date, created_date + 1]) from ' ~ list ~ ')' -%}
        {%- else -%}
            {%- set condition = none -%}
        {%- endif -%}
        {%- if condition is not none -%}
            {%- do run_and_wait('alter table ' ~ storage_of(table.relation) ~ on_cluster() ~ ' delete where ' ~ condition) -%}
        {%- endif -%}
    {%- endfor -%}
    {#- What a killed run or reparse left beside them. -#}
    {%- set leftovers = run_query(
        'select name from system.tables where database = ' ~ sql_text(target.schema)
        ~ " and (name in ('llm_traces__reparse', 'llm_traces_reparsed') or match(name, '__dbt_(backup|tmp|new_data.*)$'))"
    ) -%}
    {%- for row in leftovers.rows -%}
        {%- do run_query('drop table if exists ' ~ target.schema ~ '.`' ~ row[0] ~ '`' ~ on_cluster() ~ ' sync') -%}
    {%- endfor -%}
{%- endmacro -%}

{#- The tables that dbt builds from llm_traces, each with its relation and the names of its columns. -#}
{%- macro built_tables() -%}
    {%- set tables = [] -%}
    {%- for node in graph.nodes.values()
        if node.resource_type == 'model' and node.package_name == project_name and node.name != 'llm_traces'
        and node.config.materialized not in ('view', 'ephemeral') -%}
        {%- set relation = load_relation(api.Relation.create(database='', schema=node.schema, identifier=node.alias)) -%}
        {%- if relation is not none -%}
            {%- do tables.append({
                'relation': relation,
                'columns': adapter.get_columns_in_relation(relation) | map(attribute='name') | list,
            }) -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(tables) }}
{%- endmacro -%}
