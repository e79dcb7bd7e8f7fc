{#
Roles for a server (the embedded engine has no users):

    dbt run-operation create_roles --args '{dry_run: true, organizations: [org-1, org-2]}'   print
    dbt run-operation create_roles --args '{organizations: [org-1, org-2]}'                  create

| role                       | may                                                                  |
|----------------------------|----------------------------------------------------------------------|
| <prefix>_writer            | insert into the raw tables, and count what they hold of a batch      |
| <prefix>_transformer       | what dbt needs: all of the database, and to see parts and statements |
| <prefix>_reader            | read every organization: for the service that serves traces back     |
| <prefix>_reader_<md5>      | read the marts of one organization; rows of others do not exist here,|
|                            | nor do columns that tell of others (`meta: {is_private: true}`)      |

Run it again after the first build, and whenever a model or an organization is added: a grant and a
policy can only be made for what is there or known by name. It makes roles, never users, and holds
no password: `create user …`, `grant <role> to <user>` are the administrator's.
-#}
{%- macro create_roles(dry_run=false, prefix='tokenledger', organizations=[]) -%}
    {%- if not is_shared_store() and not dry_run -%}
        {{ exceptions.raise_compiler_error('create_roles: the embedded engine has no users; its folder is its guard (mode 0700).') }}
    {%- endif -%}
    {%- if not modules.re.fullmatch('[A-Za-z_][A-Za-z0-9_]{0,60}', prefix) -%}
        {{ exceptions.raise_compiler_error('create_roles: the prefix ' ~ prefix ~ ' is no identifier.') }}
    {%- endif -%}
    {%- if organizations is not sequence or organizations is string or organizations is mapping or organizations | reject('string') | list -%}
        {{ exceptions.raise_compiler_error("create_roles: organizations has to be a list of strings; YAML reads a bare 0123 as a number: write ['org-1', '0123'].") }}
    {%- endif -%}
    {%- for organization in organizations if '\n' in organization or not organization | trim -%}
        {{ exceptions.raise_compiler_error('create_roles: an organization is empty or holds a line break.') }}
    {%- endfor -%}
    {%- set names = [] -%}
    {%- for organization in organizations -%}
        {%- if local_md5(organization) in names -%}
            {{ exceptions.raise_compiler_error('create_roles: two organizations would share a role: name ' ~ organization ~ ' once.') }}
        {%- endif -%}
        {%- do names.append(local_md5(organization)) -%}
    {%- endfor -%}
    {%- for node in graph.nodes.values() if var('sharded', false) or (node.package_name == project_name and node.config.materialized.startswith('distributed')) -%}
        {{ exceptions.raise_compiler_error('create_roles: the row policy of a Distributed table does not hold for the tables behind it. Keep one ledger a shard (docs/operate.md), and make the roles in each.') }}
    {%- endfor -%}
    {%- for statement in roles_ddl(target.schema, prefix, organizations, _organization_tables(), target.get('cluster'), _private_columns()).split(';;\n') if statement.strip() -%}
        {%- if dry_run -%}
            {%- do print(statement.strip().rstrip(';') ~ ';') -%}
        {%- else -%}
            {%- do run_query(statement) -%}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro -%}

{#- The marts that hold an organization's rows: name -> whether it is a table. Views read with the
    reader's own rights, so what they read is filtered there. -#}
{%- macro _organization_tables() -%}
    {%- set tables = [] -%}
    {%- for node in graph.nodes.values()
        if node.resource_type == 'model' and node.package_name == project_name
        and 'organization_id' in node.columns and node.config.materialized not in ('view', 'ephemeral')
        and node.path.startswith('marts') -%}
        {%- do tables.append(node.alias) -%}
    {%- endfor -%}
    {{ return(tables | sort) }}
{%- endmacro -%}

{#- Columns that tell of other organizations' rows, which a row policy does not hide: name of the mart ->
    which it may be granted, and which not. -#}
{%- macro _private_columns() -%}
    {%- set tables = {} -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.package_name == project_name -%}
        {%- set private = node.columns.values() | selectattr('meta.is_private') | map(attribute='name') | list -%}
        {%- if private -%}
            {%- do tables.update({node.alias: {'private': private, 'public': node.columns.keys() | reject('in', private) | list}}) -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(tables) }}
{%- endmacro -%}

{#- The statements, separated by `;;`; all may be run again. A role's policies come before what it is
    granted: a role without a policy may see every row. The head of a query's name tells the loader
    whether its insert still runs, and a comment in its text tells dbt whether another run does. -#}
{%- macro roles_ddl(database, prefix, organizations, tables, cluster, columns) -%}
{%- set on_cluster = (' on cluster `' ~ cluster ~ '`') if cluster else '' -%}
{%- set writer, transformer, reader = prefix ~ '_writer', prefix ~ '_transformer', prefix ~ '_reader' -%}
create role if not exists {{ writer }}, {{ transformer }}, {{ reader }}{{ on_cluster }};;
alter role {{ reader }}{{ on_cluster }} settings use_query_condition_cache = 0;;
{%- for table in tables %}
create row policy if not exists {{ prefix }}_all{{ on_cluster }} on `{{ database }}`.{{ table }} for select using 1 to {{ transformer }}, {{ reader }};;
{%- endfor %}
{%- for table in ['raw_traces', 'raw_rejects'] %}
grant{{ on_cluster }} insert, select(batch_id, position) on `{{ database }}`.{{ table }} to {{ writer }};;
{%- endfor %}
grant{{ on_cluster }} insert, select on `{{ database }}`.raw_batches to {{ writer }};;
grant{{ on_cluster }} select on `{{ database }}`.raw_lost_batches to {{ writer }};;
grant{{ on_cluster }} select(batch_id, raw_table, reason, is_whole, positions, retired_at) on `{{ database }}`.retired_batches to {{ writer }};;
grant{{ on_cluster }} select(query_id) on system.processes to {{ writer }};;
grant{{ on_cluster }} select(database, `table`, command, is_done) on system.mutations to {{ writer }};;
grant{{ on_cluster }} select, insert, alter, create, drop, truncate, optimize, show on `{{ database }}`.* to {{ transformer }};;
{%- for table in ['parts', 'detached_parts', 'processes', 'mutations'] %}
grant{{ on_cluster }} select on system.{{ table }} to {{ transformer }};;
{%- endfor %}
{%- if cluster %}
grant{{ on_cluster }} cluster on *.* to {{ transformer }};;
grant{{ on_cluster }} system sync replica on `{{ database }}`.* to {{ transformer }};;
{%- endif %}
grant{{ on_cluster }} select on `{{ database }}`.* to {{ reader }};;
{%- for organization in organizations %}
{%- set role = prefix ~ '_reader_' ~ local_md5(organization) %}
create role if not exists {{ role }}{{ on_cluster }};;
alter role {{ role }}{{ on_cluster }} settings use_query_condition_cache = 0;;
{%- for table in tables %}
create row policy or replace {{ role }}{{ on_cluster }} on `{{ database }}`.{{ table }} for select using organization_id = {{ sql_text(organization) }} to {{ role }};;
{%- endfor %}
{%- for table in tables %}
{%- if table in columns %}
grant{{ on_cluster }} select({{ columns[table].public | join(', ') }}) on `{{ database }}`.{{ table }} to {{ role }};;
{#- What was granted before they were private. #}
revoke{{ on_cluster }} select({{ columns[table].private | join(', ') }}) on `{{ database }}`.{{ table }} from {{ role }};;
{%- else %}
grant{{ on_cluster }} select on `{{ database }}`.{{ table }} to {{ role }};;
{%- endif %}
{%- endfor %}
{%- endfor %}
{%- endmacro -%}
