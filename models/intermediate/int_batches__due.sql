{{ config(materialized='table', order_by=['batch_id']) }}
{# one row per batch that was pending when this run came to it #}

{#- Loaders land while a run goes on. What looks at each batch once (trace_conflicts) and what says
    that a batch is done (transformed_batches) have to mean the same batches. Behind llm_traces, so that
    `--select llm_traces+` has it. -#}
-- depends_on: {{ ref('llm_traces') }}

with

final as (
    select batch_id from {{ ref('int_batches__pending') }}
)

select * from final
