{#
Erase, on request, the traces of an organization, an end user, a customer or an agent: raw rows,
rejects, llm_traces and every model made of it.

    dbt run-operation erase --args '{organization: org-1, dry_run: true}'      what would go
    dbt run-operation erase --args '{organization: org-1}'
    dbt run-operation erase --args '{user: user-7, organization: org-1}'

One of organization, user, customer, agent is needed; several narrow it (all must hold). `user` is
the envelope's user_id, which only raw_traces holds; `customer` the billing customer as money goes by
it: the trace's own, or what is known now of its organization at its time; `agent` the agent_id. A
trace goes with every arrival of it in its organization: one that stayed would be the trace from the
next run on. A reject cannot be read, so it goes when its bytes name every one of the ids under
a key for such (names_text). A trace that was a reject first, and was replayed, takes that reject
with it, whatever it holds: a customer may be known from a subscription alone. A replay's lines keep their
places. So does a trace whose line was landed before it was whole.

Order, so that a kill at any instant leaves a state that the same call completes, and no run brings
anything back: what is to go is listed, batches to look at again are reopened, what will go from the
raw tables is recorded in retired_batches, raw rows go, then derived models, then llm_traces, and the
lists last. Each subject has lists of its own: what was broken off is completed for whom it was begun,
and by nobody else. Roll-ups by day follow by themselves: a day's fingerprint changes with its traces.
-#}
{%- macro erase(dry_run=false) -%}
    {%- set columns = {'organization': 'organization_id', 'customer': 'billing_customer_id', 'agent': 'agent_id'} -%}
    {%- if dry_run is not boolean -%}
        {{ exceptions.raise_compiler_error('erase: dry_run is true or false.') }}
    {%- endif -%}
    {%- for kind, value in kwargs.items() -%}
        {%- if kind not in columns and kind != 'user' -%}
            {{ exceptions.raise_compiler_error('erase: ' ~ kind ~ ' is no argument: organization, user, customer, agent and dry_run are.') }}
        {%- elif value is not string -%}
            {{ exceptions.raise_compiler_error('erase: ' ~ kind ~ ' is to be one text, and YAML reads what was given as something else. Write it in quotes: {' ~ kind ~ ': "0123"}.') }}
        {%- elif value == '' -%}
            {{ exceptions.raise_compiler_error('erase: ' ~ kind ~ ' is empty, which is every trace without one. Name it.') }}
        {%- endif -%}
    {%- endfor -%}
    {%- if not kwargs -%}
        {{ exceptions.raise_compiler_error("erase: whose traces? --args '{organization: ...}', or user, customer, agent.") }}
    {%- endif -%}
    {%- set user = kwargs.get('user') -%}

    {#- The longest statement: each character of a name may be written in several ways. -#}
    {%- set needles = [] -%}
    {%- for kind, value in kwargs.items() -%}
        {%- do needles.append(names_text('raw', kind, value)) -%}
    {%- endfor -%}
    {%- set by_content = 'select batch_id, position from ' ~ source('raw', 'raw_rejects') ~ ' where ' ~ needles | join(' and ') -%}
    {%- set needed_size = by_content.encode() | length + 2000 -%}
    {%- set query_size = run_query("select getSetting('max_query_size')").rows[0][0] | int -%}
    {%- if 0 < query_size < needed_size -%}
        {{ exceptions.raise_compiler_error('erase: ' ~ kwargs.keys() | join(' and ') ~ ' are too long to look for in rejects: that is a query of ' ~ needed_size ~ ' bytes, and max_query_size is ' ~ query_size
            ~ '. Set max_query_size to ' ~ needed_size ~ ' in custom_settings of profiles.yml for this call. Nothing was erased.') }}
    {%- endif -%}

    {%- if not dry_run -%}
        {%- do take_run_lock() -%}
        {%- do end_what_was_begun() -%}
    {%- endif -%}
    {#- Behind the lock: the run that holds it may be the first, which makes them. -#}
    {%- set needed = [ref('int_traces__unioned'), ref('int_traces__pending'), ref('llm_traces')] + ([ref('int_traces__rebilled')] if 'customer' in kwargs else []) -%}
    {%- for relation in needed if execute and load_relation(relation) is none -%}
        {{ refuse('erase: there is no ' ~ relation.identifier ~ ' yet, and nothing else says whose the traces are. Let a dbt run make it, then erase again. Nothing was erased.') }}
    {%- endfor -%}
    {%- do create_raw_tables() -%}
    {%- do create_operations_tables() -%}
    {%- if not dry_run -%}{%- do reopen_what_came_again() -%}{%- endif -%}

    {%- set llm_traces = ref('llm_traces') -%}
    {%- set raw_traces = source('raw', 'raw_traces') -%}
    {%- set raw_rejects = source('raw', 'raw_rejects') -%}
    {%- set raw_batches = source('raw', 'raw_batches') -%}
    {%- set retired = source('operations', 'retired_batches') -%}
    {%- set arrivals = _billed_arrivals() if 'customer' in kwargs else ref('int_traces__unioned') -%}
    {%- set traces = ref('int_traces__rebilled') if 'customer' in kwargs else llm_traces -%}

    {#- What the subject owns. In raw rows all four are readable; llm_traces holds three of them. -#}
    {%- set conditions = [] -%}
    {%- for kind, column in columns.items() if kind in kwargs -%}
        {%- do conditions.append(column ~ ' = ' ~ sql_text(kwargs[kind])) -%}
    {%- endfor -%}
    {#- By its line, which a replay that was lost and made again has in two batches. -#}
    {%- set line = first_batch() ~ ', position' -%}
    {%- set of_user = '(' ~ line ~ ') in (select ' ~ line ~ ' from ' ~ raw_traces
        ~ ' where JSONExtract(' ~ readable_envelope('envelope_json') ~ ", 'user_id', 'Nullable(String)') = " ~ sql_text(user) ~ ')' -%}
    {%- set place = 'id, batch_id, position' -%}
    {%- set listed = place ~ ', organization_id::String as organization_id, toDate32(created_at) as created_date' -%}
    {%- set owned = 'select ' ~ listed ~ ' from ' ~ arrivals ~ ' where '
        ~ (conditions + ([of_user] if user is not none else [])) | join(' and ') -%}
    {#- The list outlives a kill: it is what the ids are known from once raw rows are gone. That of a dry run is
        its own, and goes. -#}
    {%- set subject = tojson(kwargs, sort_keys=true) -%}
    {%- set list_name = 'erase_dry_run_' ~ local_md5(invocation_id) if dry_run else 'erase_list_' ~ local_md5(subject) -%}
    {%- set list = api.Relation.create(database='', schema=target.schema, identifier=list_name) -%}
    {%- if not dry_run -%}{%- do _take_up_former_list(kwargs, list) -%}{%- endif -%}
    {%- set others = run_query(
        "select uniqExact(left(name, length('erase_list_') + 32)) from system.tables where database = " ~ sql_text(target.schema)
        ~ " and startsWith(name, 'erase_list_') and total_rows > 0 and not startsWith(name, " ~ sql_text(list.identifier) ~ ')'
    ).rows[0][0] | int -%}
    {%- if others > 0 -%}
        {%- do print('note: ' ~ others ~ ' erasures for somebody else were begun and are not complete: call them again as they were.') -%}
    {%- endif -%}
    {%- do run_query(
        'create table if not exists ' ~ list ~ on_cluster()
        ~ ' (id String, batch_id String, position UInt32, organization_id String, created_date Date32)'
        ~ ' engine = ' ~ ledger_engine() ~ ' order by id settings ' ~ durable()
    ) -%}
    {#- What the subject owns, by its line, too. Whose a trace is that has no raw row, of users an arrival of its id
        tells: any, where retention has taken the row, as nothing else is left that does; one of the same payload,
        where it is lost, as its source may come back and tell. -#}
    {%- set payload = 'id, sipHash128(request_json, response_json)' -%}
    {%- set is_listed = ' where id in (select id from ' ~ list ~ ')' -%}
    {%- set of_list = ref('int_traces__unioned') ~ is_listed -%}
    {%- set is_told_by_arrival = '(id, organization_id::String) in (select id, organization_id from ' ~ list ~ ') and (' ~ place
        ~ ') not in (select ' ~ place ~ ' from ' ~ of_list ~ ') and (batch_id in (' ~ whole_retired('raw_traces') ~ ') or (' ~ place
        ~ ') in (select ' ~ place ~ ' from ' ~ llm_traces ~ is_listed ~ ' and (' ~ payload ~ ') in (select ' ~ payload ~ ' from '
        ~ of_list ~ ' and (' ~ place ~ ') in (select ' ~ place ~ ' from ' ~ list ~ '))))' -%}
    {%- set is_owned = ('id in (select id from ' ~ list ~ ') and ' if user is not none else '')
        ~ '((id, ' ~ line ~ ') in (select id, ' ~ line ~ ' from ' ~ list ~ ') or '
        ~ (conditions + ([is_told_by_arrival] if user is not none else [])) | join(' and ') ~ ')' -%}
    {%- for more in [
        owned,
        'select ' ~ listed ~ ' from ' ~ traces ~ ' where ' ~ is_owned,
        _other_arrivals(list, listed),
    ] -%}
        {%- do run_query('insert into ' ~ list ~ ' (' ~ place ~ ', organization_id, created_date) select distinct * from (' ~ more ~ ')') -%}
    {%- endfor -%}
    {%- set places = '(select ' ~ place ~ ' from ' ~ list ~ ')' -%}

    {#- Rejects have a list too, which is made before anything goes, and goes with the other, before it. -#}
    {%- set rejects_list = list.incorporate(path={'identifier': list_name ~ '_rejects'}) -%}
    {%- do run_query(
        'create table if not exists ' ~ rejects_list ~ on_cluster() ~ ' (batch_id String, position UInt32)'
        ~ ' engine = ' ~ ledger_engine() ~ ' order by batch_id settings ' ~ durable()
    ) -%}
    {%- for more in [
        by_content,
        'select batch_id, position from ' ~ raw_rejects ~ ' where (' ~ line ~ ') in (select ' ~ line ~ ' from ' ~ list
        ~ ') or (batch_id, position) in (' ~ _begun_lines(list) ~ ') or (batch_id, position) in (' ~ _begun_lines(rejects_list) ~ ')',
    ] -%}
        {%- do run_query('insert into ' ~ rejects_list ~ ' (batch_id, position) select distinct * from (' ~ more ~ ')') -%}
    {%- endfor -%}
    {%- set listed_rejects = 'select batch_id, position from ' ~ rejects_list -%}
    {%- set owned_rejects = 'select batch_id, position from ' ~ raw_rejects ~ ' where (batch_id, position) in (' ~ listed_rejects ~ ')' -%}

    {%- set report = run_query(
        "select * from (select 'raw_traces' as `table`, count() as `rows` from " ~ raw_traces
        ~ " where (batch_id, position) in (select batch_id, position from " ~ list ~ ")"
        ~ " union all select 'raw_rejects', count() from (" ~ owned_rejects ~ ")"
        ~ " union all select 'llm_traces', count() from " ~ llm_traces ~ " where (" ~ place ~ ") in " ~ places
        ~ ") order by `table`"
    ) -%}
    {%- set kinds = kwargs.keys() | list -%}
    {%- do print('erasing the traces of ' ~ kinds | join(' and ') ~ (' (dry run: nothing is deleted)' if dry_run else '')) -%}
    {%- do report.print_table(max_columns=none) -%}
    {%- if user is not none -%}
        {%- set unknown = run_query(
            "select count() from (" ~ whole_retired('raw_traces') ~ ")"
        ).rows[0][0] | int -%}
        {%- if unknown > 0 -%}
            {%- do print('note: ' ~ unknown ~ ' batches have no raw rows any more (retention), and only those name the user. '
                ~ 'Of these batches traces go only where another arrival of theirs names the user: erase the others by agent or customer.') -%}
        {%- endif -%}
    {%- endif -%}
    {%- set retired_rejects = run_query("select count() from (" ~ whole_retired('raw_rejects') ~ ")").rows[0][0] | int -%}
    {%- if retired_rejects > 0 -%}
        {%- do print('note: ' ~ retired_rejects ~ ' batches have no rejects any more (retention), and these were not looked at: '
            ~ 'where such a batch is lost and landed again (mend), erase again by the same call.') -%}
    {%- endif -%}
    {#- Lost and not mended yet, or mended and not landed, or made, again. The beginning of a line never is, nor
        a replay of which some lines are rows of the batch that it was made of since that was landed again. -#}
    {%- set lost = run_query(
        'select uniqExact(batch_id) from (' ~ short_batches() ~ ' union distinct ' ~ lost_batches()
        ~ ' and source not in (select source from ' ~ raw_batches ~ " where startsWith(source, 'replay/'))"
        ~ ' and batch_id not in (select arrayJoin(continues) from ' ~ raw_batches ~ ')'
        ~ ' and batch_id not in (select replays.batch_id from ' ~ source('raw', 'raw_lost_batches') ~ ' as replays inner join ' ~ raw_batches
        ~ " as origins on replays.source = 'replay/' || origins.batch_id where replays.`rows` + replays.rejects > origins.rejects))"
    ).rows[0][0] | int -%}
    {%- if lost > 0 -%}
        {%- do print('note: ' ~ lost ~ ' batches have lost raw rows, which may name more of what is to go and were not looked at. '
            ~ 'Let dbt run-operation mend name their sources, land these again, and erase again by the same call. '
            ~ 'What is erased now is remembered, and goes once more when it comes back.') -%}
    {%- endif -%}

    {#- A loader was killed, or is at work. A file that grew since is cut otherwise: its batch is another one. -#}
    {%- set unfinished = run_query(
        'select count() from (select batch_id from ' ~ raw_traces ~ ' where (batch_id, position) in (select batch_id, position from ' ~ list
        ~ ') union all select batch_id from (' ~ owned_rejects ~ ')) where batch_id not in (select batch_id from ' ~ raw_batches
        ~ ') and batch_id not in (select batch_id from ' ~ source('raw', 'raw_lost_batches') ~ ')'
    ).rows[0][0] | int -%}
    {%- if unfinished > 0 -%}
        {%- do print('note: ' ~ unfinished ~ ' of them are of batches that are not finished: land their sources, then erase again '
            ~ 'by the same call. What is landed then may be another batch, of which nothing is remembered.') -%}
    {%- endif -%}

    {%- if not dry_run -%}
        {#- Of an id that goes, an arrival that stays may be the trace from now on: look again. By the list,
            and not by what is there still: a run may have come between a kill and this call. -#}
        {%- for ledger in built_tables() if ledger.is_ledger -%}
            {%- do run_and_wait(
                'alter table ' ~ storage_of(ledger.relation) ~ on_cluster() ~ ' delete where batch_id in ('
                ~ 'select batch_id from ' ~ ref('int_traces__unioned') ~ ' where id in (select id from ' ~ list ~ ')'
                ~ ' and (batch_id, position) not in (select batch_id, position from ' ~ list ~ '))'
            ) -%}
        {%- endfor -%}
        {#- From the lists, so that rows are recorded too which retention took, or which were lost since a kill:
            they may be landed again. What was erased from the other table, and is in this one now, is missing
            from this one then. Of what was replayed the first reject too: it may be lost, and come again. -#}
        {%- set listed_places = 'select batch_id, position from ' ~ list -%}
        {%- set first_rejects = 'select ' ~ first_batch() ~ ' as first_id, position from (' ~ listed_places ~ ' union all ' ~ listed_rejects
            ~ ') where batch_id != first_id and (first_id, position) not in (' ~ listed_places ~ ')' -%}
        {%- for raw_table, rows in {
            'raw_traces': listed_places,
            'raw_rejects': listed_rejects ~ ' where (batch_id, position) not in (' ~ erased_positions() ~ ') union distinct ' ~ first_rejects,
        }.items() -%}
            {%- do run_query(
                'insert into ' ~ retired ~ ' (batch_id, raw_table, reason, is_whole, positions, retired_at)'
                ~ " select batch_id, '" ~ raw_table ~ "', 'erasure', false, groupUniqArray(position), now64(3, 'UTC')"
                ~ ' from (' ~ rows ~ ' union distinct select batch_id, position from ' ~ source('raw', raw_table)
                ~ ' where (batch_id, position) in (' ~ erased_positions() ~ ')) where (batch_id, position) not in ('
                ~ erased_positions(raw_table) ~ ') group by batch_id'
            ) -%}
            {%- do run_and_wait(
                'alter table ' ~ storage_of(source('raw', raw_table)) ~ on_cluster()
                ~ ' delete where (batch_id, position) in (' ~ erased_positions() ~ ')'
            ) -%}
        {%- endfor -%}
        {%- do _erase_from_models(list, places, kwargs['organization'] if kwargs | length == 1 else none) -%}
        {#- Each shard reads the list where it is: on this one. -#}
        {%- set is_sharded = storage_of(llm_traces) != llm_traces -%}
        {%- set list_anywhere = "cluster('" ~ target.get('cluster') ~ "', '" ~ list.schema ~ "', '" ~ list.identifier ~ "')" if is_sharded else list -%}
        {%- do run_and_wait(
            'alter table ' ~ storage_of(llm_traces) ~ on_cluster() ~ ' delete where (' ~ place ~ ') in (select ' ~ place ~ ' from ' ~ list_anywhere ~ ')'
        ) -%}
        {%- set left = run_query('select count() from ' ~ llm_traces ~ ' where (' ~ place ~ ') in ' ~ places).rows[0][0] | int -%}
        {%- if left > 0 -%}
            {{ refuse('erase: ' ~ left ~ ' traces are still in llm_traces after deleting them. What is to go stays listed: erase again by the same call.') }}
        {%- endif -%}
        {%- do keep_run_lock() -%}
        {%- do run_query(
            'insert into ' ~ source('operations', 'erasures')
            ~ " select " ~ sql_text(kinds | join(', ')) ~ ", lower(hex(SHA256(" ~ sql_text(subject) ~ "))), "
            ~ report.rows[2][1] ~ ", " ~ report.rows[1][1] ~ ", " ~ report.rows[0][1] ~ ", now64(3, 'UTC')"
        ) -%}
    {%- endif -%}
    {%- for made in [rejects_list, list] -%}
        {#- Another call of the same erasure may have taken over, and need them. -#}
        {%- if not dry_run -%}{%- do keep_run_lock() -%}{%- endif -%}
        {%- do run_query('drop table if exists ' ~ made ~ on_cluster() ~ ' sync') -%}
    {%- endfor -%}
    {%- if not dry_run -%}
        {%- do free_run_lock() -%}
        {%- do print('erased. Roll-ups are made anew by the next dbt run. Backups, logs and files that were landed are not touched.') -%}
    {%- endif -%}
{%- endmacro -%}

{#- What an earlier version began has a list of another name, which a value with a line break may share with
    another subject: that one is left, and counted with those that are not complete. -#}
{%- macro _take_up_former_list(subject, list) -%}
    {%- set lines = [] -%}
    {%- for kind, value in subject | dictsort -%}{%- do lines.append(kind ~ '\n' ~ value) -%}{%- endfor -%}
    {%- set former = api.Relation.create(database='', schema=list.schema, identifier='erase_list_' ~ local_md5(lines | join('\n'))) -%}
    {%- if '\n' not in subject.values() | join and load_relation(former) is not none and load_relation(list) is none -%}
        {%- do run_query('rename table ' ~ former ~ ' to ' ~ list ~ on_cluster()) -%}
    {%- endif -%}
{%- endmacro -%}

{#- Arrivals with the customer that they are, or would be, charged to. -#}
{%- macro _billed_arrivals() -%}
(
with

arrivals as (
    select * except (request_json, response_json) from {{ ref('int_traces__unioned') }}
),

{{ matched_with_subscriptions('arrivals') }}

select
    *,
    {{ billing_columns() }}
from matched
)
{%- endmacro -%}

{#- Every arrival of a trace that goes, in its organization; none of a trace that stays, or is to be one. -#}
{%- macro _other_arrivals(going, columns) -%}
    select {{ columns }}
    from {{ ref('int_traces__unioned') }}
    where (id, organization_id) in (select id, organization_id from {{ going }})
        and (id, organization_id) not in (
            select id, organization_id::String
            from {{ ref('llm_traces') }}
            where id in (select id from {{ going }})
                and (id, batch_id, position) not in (select id, batch_id, position from {{ going }})
        )
        and (id, organization_id) not in (
            select id, organization_id::String
            from {{ ref('int_traces__pending') }}
            where id in (select id from {{ going }})
                and (id, batch_id, position) not in (select id, batch_id, position from {{ going }})
                and id not in (select id from {{ ref('llm_traces') }} where id in (select id from {{ going }}))
        )
{%- endmacro -%}

{#- The rejects that are the beginning of a line that goes: its file was landed while the line was written,
    and again when it was whole. -#}
{%- macro _begun_lines(going) -%}
    select batch_id, position
    from {{ source('raw', 'raw_rejects') }}
    where batch_id in (
        select arrayJoin(continues)
        from (
            select batch_id, continues from {{ source('raw', 'raw_batches') }}
            union all
            select batch_id, continues from {{ source('raw', 'raw_lost_batches') }}
        )
        where batch_id in (select {{ first_batch() }} from {{ going }} where position = 0)
    )
{%- endmacro -%}

{#- Whether text, which need not be JSON, names the subject: the value stands under a key for such, as a JSON
    string or, where it is all digits, as a number. Such a key ends in one of the words, or in it and `id`.
    Where a torn line begins behind that key, or within it (at the start, or at the end of a hole of zeros),
    the string alone tells; unless another organization than the one that is looked for is named. -#}
{%- macro names_text(text, kind, value) -%}
    {%- set words = {
        'organization': ['org', 'organization'],
        'user': ['user', 'safety_identifier'],
        'customer': ['customer'],
        'agent': ['agent'],
    }[kind] -%}
    {%- set quote = '(?:\\\\*"|\\\\+u0022)' -%}
    {%- set space = '(?:\\s|\\\\+(?:[nrt]|u00(?:20|0[9aAdD])))' -%}
    {%- set id = '(?:(?:' ~ _spelled('._-') | join('|') ~ ')?' ~ _spelled('id', any_case=true) | join('?') ~ ')?' -%}
    {%- set colon = space ~ '*' ~ _spelled(':')[0] ~ space ~ '*' -%}
    {%- set keys = [] -%}
    {%- set torn_keys = [] -%}
    {%- for word in words -%}
        {%- set torn = namespace(key='') -%}
        {%- set pieces = _spelled(word, any_case=true) + [id, quote, colon] -%}
        {%- for piece in pieces -%}{%- set torn.key = '(?:' ~ torn.key ~ piece ~ ')?' -%}{%- endfor -%}
        {%- do keys.append(pieces | join('')) -%}
        {%- do torn_keys.append(torn.key) -%}
    {%- endfor -%}
    {%- set key = '(?i:' ~ keys | join('|') ~ ')' -%}
    {%- set string = quote ~ _spelled(value) | join('') ~ quote -%}
    {#- JSON within strings, and lists. -#}
    {%- set within = '(?:' ~ quote ~ '|' ~ space ~ ')*' -%}
    {%- set values = [within ~ '(?:\\[(?:[^\\[\\]{}]*,)?' ~ space ~ '*)?' ~ string] -%}
    {#- A number is no beginning of a text, within a list neither, and none that may go on behind a cut. -#}
    {%- if modules.re.fullmatch('[0-9]+', value) -%}
        {%- set former = '(?:[^"\\\\\\[\\]{}]|' ~ quote ~ '[^"\\\\]*' ~ quote ~ ')*,' -%}
        {%- do values.append('(?:' ~ within ~ '\\[(?:' ~ former ~ ')?' ~ space ~ '*)?' ~ value ~ space ~ '*[,}\\]]') -%}
    {%- endif -%}
    {%- set named = key ~ '(?:' ~ values | join('|') ~ ')' -%}
    {%- set begun = '(?:^|\\x{0000})(?i:' ~ torn_keys | join('|') ~ ') ?' ~ string -%}
    {%- set another = key ~ '(?:' ~ quote ~ '[^"\\\\]|[0-9])' -%}
    {%- set readable = 'toValidUTF8(' ~ text ~ ')' -%}
    (
        match({{ readable }}, {{ sql_text(named) }})
        or match({{ readable }}, {{ sql_text(begun) }})
        {%- if kind == 'organization' %} and not match({{ readable }}, {{ sql_text(another) }}){% endif %}
    )
{%- endmacro -%}

{#- The patterns of a text's characters within JSON: each may be itself or an escape, behind as many
    backslashes as JSON in strings within strings gives it. -#}
{%- macro _spelled(value, any_case=false) -%}
    {%- set short = {'\b': 'b', '\f': 'f', '\n': 'n', '\r': 'r', '\t': 't'} -%}
    {%- set spelled = [] -%}
    {%- for character in value -%}
        {%- set code = character.encode('utf-16-be').hex() -%}
        {%- set other = (character.swapcase() if any_case else character).encode('utf-16-be').hex() -%}
        {%- set itself = character if character.isalnum() or code | length > 4 else '\\x{' ~ code ~ '}' -%}
        {%- set escape = [] -%}
        {%- for digit in code -%}
            {%- set digits = (digit ~ digit | upper ~ other[loop.index0]) | unique(true) | join -%}
            {%- do escape.append(('\\\\+u' if loop.index0 % 4 == 0 else '') ~ ('[' ~ digits ~ ']' if digits | length > 1 else digits)) -%}
        {%- endfor -%}
        {%- set ways = [('\\\\*' if character in '"\\/' else '') ~ itself, escape | join('')] -%}
        {%- if character in short -%}{%- do ways.append('\\\\+' ~ short[character]) -%}{%- endif -%}
        {%- do spelled.append('(?:' ~ ways | join('|') ~ ')') -%}
    {%- endfor -%}
    {{ return(spelled) }}
{%- endmacro -%}

{#- The places of which a row was erased: in either raw table, as a line that was a reject may be a row
    when it lands again, by other formats or limits, and a row a reject; or those that count to one of
    them, which is where each was erased last. -#}
{%- macro erased_positions(raw_table=none) -%}
    {%- if raw_table is none -%}
select
    batch_id,
    arrayJoin(positions) as position
from {{ source('operations', 'retired_batches') }}
where reason = 'erasure'
    {%- else -%}
select
    batch_id,
    position
from (
    select
        batch_id,
        arrayJoin(positions) as position,
        raw_table,
        retired_at
    from {{ source('operations', 'retired_batches') }}
    where reason = 'erasure'
)
group by
    batch_id,
    position
having argMax(raw_table, retired_at) = '{{ raw_table }}'
    {%- endif -%}
{%- endmacro -%}

{#- on-run-start: a source that was landed again, after its batch had been lost, brought erased rows too.
    What is not in the ledger is another loader's work, which counts it. -#}
{%- macro erase_what_came_again() -%}
    {%- if may_change() -%}
        {%- for raw_table in ['raw_traces', 'raw_rejects'] -%}
            {%- set again = '(batch_id, position) in (' ~ erased_positions() ~ ' and batch_id in (select batch_id from '
                ~ source('raw', 'raw_batches') ~ '))' -%}
            {%- set count = run_query('select count() from ' ~ source('raw', raw_table) ~ ' where ' ~ again).rows[0][0] | int -%}
            {%- if count > 0 -%}
                {%- do log(raw_table ~ ': ' ~ count ~ ' rows that had been erased were landed again: erasing them', info=true) -%}
                {#- What was a reject and is a row now is missing where the ledger counts rows. -#}
                {%- do run_query(
                    'insert into ' ~ source('operations', 'retired_batches') ~ ' (batch_id, raw_table, reason, is_whole, positions, retired_at)'
                    ~ " select batch_id, '" ~ raw_table ~ "', 'erasure', false, groupUniqArray(position), now64(3, 'UTC') from "
                    ~ source('raw', raw_table) ~ ' where ' ~ again ~ ' and (batch_id, position) not in ('
                    ~ erased_positions(raw_table) ~ ') group by batch_id'
                ) -%}
                {%- do run_and_wait('alter table ' ~ storage_of(source('raw', raw_table)) ~ on_cluster() ~ ' delete where ' ~ again) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{#- By trace where a table has an id, else by organization and day, which the next run builds anew. -#}
{%- macro _erase_from_models(list, places, organization) -%}
    {%- set organization_hash = run_query('select hex(SHA256(' ~ sql_text(organization) ~ '))').rows[0][0] if organization -%}
    {%- for table in built_tables() -%}
        {%- set dates = [] -%}
        {%- for column in table.columns if column.endswith('_date') -%}{%- do dates.append(column) -%}{%- endfor -%}
        {%- if 'kept_batch_id' in table.columns -%}
            {%- set condition = '(id, batch_id, position) in ' ~ places
                ~ ' or (id, kept_batch_id, kept_position) in ' ~ places -%}
        {%- elif 'id' in table.columns -%}
            {#- A trace that stays keeps its cost, also where another arrival of its batch goes. -#}
            {%- set key = ['id', 'organization_id', 'batch_id'] | select('in', table.columns) | join(', ') -%}
            {%- set condition = '(' ~ key ~ ') in (select ' ~ key ~ ' from ' ~ list ~ ') and (' ~ key ~ ') not in (select '
                ~ key ~ ' from ' ~ ref('llm_traces') ~ ' where id in (select id from ' ~ list ~ ') and (id, batch_id, position) not in ' ~ places ~ ')' -%}
        {%- elif 'organization_id' in table.columns and dates -%}
            {#- Days may be cut in another time zone than UTC: one day more on either side. -#}
            {%- set condition = '(organization_id, ' ~ dates[0] ~ ') in (select organization_id,'
                ~ ' arrayJoin([created_date - 1, created_date, created_date + 1]) from ' ~ list ~ ')' -%}
        {%- elif table.relation.identifier == 'llm_price_matches' -%}
            {#- The name of a model may be somebody's own. -#}
            {%- set condition = '(provider, model, response_model) not in (select provider, model, '
                ~ "coalesce(response_model, '') from " ~ ref('llm_traces') ~ ' where (id, batch_id, position) not in ' ~ places ~ ')' -%}
        {%- else -%}
            {%- set condition = none -%}
        {%- endif -%}
        {%- if organization and 'id' in table.columns -%}
            {#- No list has an arrival whose raw row retention took. By its hash: the engine keeps the text
                of what it deletes by. -#}
            {%- set condition = condition ~ " or hex(SHA256(organization_id)) = '" ~ organization_hash ~ "'" -%}
        {%- endif -%}
        {%- if condition is not none -%}
            {%- do run_and_wait('alter table ' ~ storage_of(table.relation) ~ on_cluster() ~ ' delete where ' ~ condition) -%}
        {%- endif -%}
    {%- endfor -%}
    {#- What a reparse or a killed dry run left beside them. -#}
    {%- do drop_leftovers("name = 'llm_traces_reparsed' or startsWith(name, 'erase_dry_run_')") -%}
{%- endmacro -%}

{#- The tables that dbt builds from llm_traces: each with its relation, the names of its columns, and whether it
    is a ledger of the batches that were built, or has what was made of a trace. -#}
{%- macro built_tables() -%}
    {%- set tables = [] -%}
    {%- for node in graph.nodes.values()
        if node.resource_type == 'model' and node.package_name == project_name and node.name != 'llm_traces'
        and node.config.materialized not in ('view', 'ephemeral') -%}
        {%- set relation = load_relation(api.Relation.create(database='', schema=node.schema, identifier=node.alias)) -%}
        {%- if relation is not none -%}
            {%- set columns = adapter.get_columns_in_relation(relation) | map(attribute='name') | list -%}
            {%- do tables.append({
                'relation': relation,
                'columns': columns,
                'is_ledger': 'batch_id' in columns and 'id' not in columns,
                'is_by_trace': 'id' in columns and 'kept_batch_id' not in columns,
            }) -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(tables) }}
{%- endmacro -%}
