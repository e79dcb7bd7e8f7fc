{#
Seeds decide on money. dbt's way to load one is to empty its table, then to fill it: whoever comes
between, or after a load that failed, prices without it. Here a seed is loaded beside its table and
exchanged for it, so that it is there as it was or as it is. The table's comment is the checksum of
its file and how many rows it has, by which a run sees that it was not loaded, has changed since, or
was lost in part.
-#}

{#- on-run-start: the tables of seeds that were never loaded, empty, so that `dbt run` works on a fresh
    store. They are filled by `dbt seed` or `dbt build`. -#}
{%- macro create_seed_tables() -%}
    {%- if execute -%}
        {%- for seed in graph.nodes.values() if seed.resource_type == 'seed' and seed.package_name == project_name -%}
            {%- set relation = api.Relation.create(
                database='', schema=seed.schema, identifier=seed.alias, type='table'
            ) -%}
            {%- if load_relation(relation) is none -%}
                {%- do run_query(seed_table_ddl(relation, seed, '')) -%}
                {%- do adapter.cache_added(relation) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{#- on-run-start: `dbt run` loads no seeds; say which are not in the store as their files are. -#}
{%- macro warn_of_stale_seeds() -%}
    {%- if execute and flags.WHICH == 'run' -%}
        {%- set loaded = dict(run_query(
            "select name, if(comment = '', '', splitByChar(' ', comment)[1] || if(toUInt64OrZero(splitByChar(' ', comment)[2])"
            ~ " = total_rows, '', ' in part')) from system.tables where database = " ~ sql_text(target.schema)
        ).rows | map('list')) -%}
        {%- set stale = [] -%}
        {%- for seed in graph.nodes.values() if seed.resource_type == 'seed' and seed.package_name == project_name
            and loaded.get(seed.alias) != seed.checksum.checksum -%}
            {%- do stale.append(seed.original_file_path) -%}
        {%- endfor -%}
        {%- if stale -%}
            {%- do exceptions.warn(
                'warning: not in the store as they are here: ' ~ stale | sort | join(', ') ~ '. This run prices by what was loaded '
                ~ 'of them before, if anything, and what is costed keeps its cost. Load them: dbt seed'
            ) -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}

{%- macro seed_table_ddl(relation, seed, comment) -%}
    {%- set columns = [] -%}
    {%- for column in seed.columns.values() -%}
        {%- do columns.append('`' ~ column.name ~ '` ' ~ column.data_type) -%}
    {%- endfor -%}
    create table if not exists {{ relation }}{{ on_cluster() }} ({{ columns | join(', ') }})
    engine = {{ ledger_engine() }} order by tuple() settings {{ durable() }} comment {{ sql_text(comment) }}
{%- endmacro -%}

{#- Instead of dbt's, which empties the table. Of a file without rows dbt loads nothing. -#}
{%- macro clickhouse__reset_csv_table(model, full_refresh, old_relation, agate_table) -%}
    {%- if agate_table.rows | length == 0 -%}
        {%- do clickhouse__load_csv_rows(model, agate_table) -%}
    {%- endif -%}
{%- endmacro -%}

{#- Instead of dbt-clickhouse's: into a table beside, then exchanged. -#}
{%- macro clickhouse__load_csv_rows(model, agate_table) -%}
    {%- set beside = this.incorporate(path={'identifier': this.identifier ~ '__dbt_tmp'}) -%}
    {%- do run_query('drop table if exists ' ~ beside ~ on_cluster() ~ ' sync') -%}
    {%- do run_query(seed_table_ddl(beside, model, model.checksum.checksum ~ ' ' ~ agate_table.rows | length)) -%}
    {%- set rows = adapter.get_csv_data(agate_table) -%}
    {%- if rows -%}
        {%- do adapter.add_query(
            'insert into ' ~ beside ~ ' (' ~ get_seed_column_quoted_csv(model, agate_table.column_names) ~ ') '
            ~ adapter.get_model_query_settings(model) ~ '\nformat CSV\n' ~ rows,
            bindings=agate_table, abridge_sql_log=True
        ) -%}
    {%- endif -%}
    {%- do exchange_tables_atomic(beside, this) -%}
    {%- do run_query('drop table if exists ' ~ beside ~ on_cluster() ~ ' sync') -%}
{%- endmacro -%}
