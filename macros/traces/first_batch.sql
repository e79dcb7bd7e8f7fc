{#- The batch that a line first came with: the id of a replay begins with it (loader/replay.py). With the
    position, which a replay keeps, it names the line wherever it is. -#}
{%- macro first_batch() -%}
left(batch_id, 32)
{%- endmacro -%}
