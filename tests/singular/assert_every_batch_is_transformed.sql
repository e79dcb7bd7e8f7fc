{{ config(severity='warn') }}
-- depends_on: {{ ref("transformed_batches") }}
{# A batch that stays pending after a run could not be read back whole: a format without a staging
    model, or rows that are gone. On a server, one that landed during the run shows here until the next. #}

select
    batch_id,
    `rows`,
    landed_at
from {{ ref('int_batches__pending') }}
