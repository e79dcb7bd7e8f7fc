{#-
What an error means, as data. The first class of which `pattern` is found in the lower-cased text
"type | code | message" is taken, else `unknown`. The order carries meaning: a request that is too
long names tokens and limits just as a rate limit does, and providers send `invalid_request_error`
for nearly everything, so the words of the message come before the type.
-#}
{% macro error_classes() %}
{% set text %}
- class: context_overflow
  pattern: 'context_length|context_window|context length|context window|context size|context limit|contextwindow|prompt is too long|prompt too long|input is too long|input too long|too many input tokens|too_many_(prompt_|input_)?tokens|too many tokens(: | in |[^ ,.]*$)|maximum (number of|allowed|input) tokens|tokens? (count|length)? ?(\([0-9]+\) )?exceeds?|exceeds? the (maximum|max|configured|model).{0,40}(token|length|limit of [0-9]+)|limit of [0-9]+ tokens|[0-9]+ tokens > [0-9]+|total length of all messages|reduce the length of|max_model_len|model_max_prompt_tokens|prompt_too_long|request_too_large|.?inputs?.? tokens? \+ .?max_new_tokens|string_above_max_length|token limit (reached|exceeded)'
- class: content_filter
  pattern: 'content_filter|content filter|contentfilter|content_policy|content policy|content management policy|responsibleai|safety system|safety_|moderation|prohibited_content|data_inspection_failed|datainspectionfailed|guardrail|blocked by|was blocked|flagged|usage polic|sensitive content|model_armor|recitation'
- class: quota
  pattern: 'insufficient_quota|insufficient quota|exceeded your current quota|exceeded_current_quota|insufficient.?balance|insufficient.?(credit|fund)|billing|credit balance|out of credits?|more credits|payment.?required|arrearage|quota_exceeded|quotaexceeded|monthly (usage|spend|limit)|spend(ing)? limit|usage limit|budget|plan limit|error code: 402|\| 402 '
- class: rate_limit
  pattern: 'rate.?limit|ratelimit|request.?limit.?exceeded|too.?many.?requests|throttl|resource_?exhausted|resource exhausted|tokens per (min|day)|requests per (min|day)|concurren(cy|t)|quota|error code: 429|\| 429 |slow down'
- class: timeout
  pattern: 'timeout|timed out|time.?out|deadline.?exceeded|error code: (408|504)|\| (408|504) '
- class: overloaded
  pattern: 'overload|unavailable|over capacity|over_capacity|at capacity|no capacity|capacity exceeded|notready|is (currently )?loading|error code: (503|529)|\| (503|529) |engine is busy|server is busy|high demand'
- class: authentication
  pattern: 'authenticat|unauthori[sz]ed|invalid.?api.?(key|token)|access token (is )?(invalid|expired)|login fail|authfailure|incorrect.?api.?key|api.?key.{0,30}(invalid|expired|not valid|missing|required)|invalid x-api-key|no.{0,12}credentials|invalid.?(token|credential|jwt|signature)|expiredtoken|security token|unrecognizedclient|credentials_missing|error code: 401|\| 401 '
- class: not_found
  pattern: 'not.?found|does not exist|doesn.t exist|no such|was removed|decommissioned|has been deprecated|unknown model|error code: (404|410)|\| (404|410) '
- class: permission
  pattern: 'permission|forbidden|access.?denied|not allowed to|not authorized|don.t have access|do not have access|no access|unsupported_country|not available in your|location is not supported|error code: 403|\| 403 '
- class: cancelled
  pattern: 'cancell?ed|cancell?ation|aborted|client.{0,12}disconnect|error code: 499|\| 499 '
- class: invalid_request
  pattern: 'invalid|bad.?request|unprocessable|unsupported|doesn.t support|not.?support|not match any|field required|validation|malformed|missing|must be|is required|out of range|not a valid|could not parse|failed_precondition|extra inputs|error code: (400|405|409|413|415|422)|\| (400|405|409|413|415|422) '
- class: server_error
  pattern: 'internal|server.?error|api.?error|bad.?gateway|upstream|provider returned error|unexpected|modelerror|service.?error|apiconnectionerror|connection|error code: 5[0-9][0-9]|\| 5[0-9][0-9] '
{% endset %}
{{ return(fromyaml(text)) }}
{% endmacro %}


{#-
The members of a body that is nothing but an error: {message}, {id, message}, {detail}, and the
like with a code or a request id. A body with any other member is not taken for an error. A `title`
alone is none: it needs a status of 400 and more.

outcome  members that say how it went; good: values of theirs that are no error
-#}
{% macro bare_error_keys() %}
{% set text %}
message: [message, Message, detail, error_msg, error_message, errorMessage, err_msg, msg, title]
type: [__type, error_code, errorCode, ErrorCode, err_code, code, errorType, Code, tpe, name]
beside: [id, type, object, param, status, statusCode, status_code, raw_status_code, request_id,
         requestId, RequestId, trace_id, trace, timestamp, created_at, path, instance, success, data, event_id,
         event, task_id, message_id, sequence_number, logref, documentation_url, help, resource,
         origin, loc, details, errors, result, messages, headers, context, extras, error_id,
         ResponseMetadata, LogStreamArn, OriginalMessage, OriginalStatusCode, more_info, ok, sid,
         reason, hint, retry_after, correlation_id, correlationId, traceId, log_id, subcode, doc_url,
         stack, stackTrace, exception, statusText, status_text, method, url, kind, apiVersion]
outcome: [status, statusCode, status_code, code, Code, success, ok, message, msg]
good: ['true', '0', '2[0-9]{2}', '20000', ok, success, succeeded, successful, completed, complete,
       done, ready, running, pending, processing, queued, in_progress, created, active]
{% endset %}
{{ return(fromyaml(text)) }}
{% endmacro %}


{#-
Paths of objects whose `error` or `status: failed` is not the call's: what the caller sent along,
tools and steps report, a filter could not tell, or the model wrote.
-#}
{% macro no_fault_of_the_call() -%}
(?i)(?:^|\\.)(?:metadata|outputs?|generations|tool|mcp|content_filter|prompt_filter|steps?|step_details|item)(?:$|\\.|_)
{%- endmacro %}


{#- Raw finish reasons, lower-cased, by what they mean. A reason that is not listed is `other`. -#}
{% macro finish_reasons() %}
{% set text %}
stop: [stop, end_turn, stop_sequence, eos, eos_token, complete, completed, end, finish, finished,
       end_of_text, stop_token, success, succeeded, '1', turn_complete, done, eos_found, eosfound, endoftext,
       normal, reason_stop,
       '<|im_end|>', '<|eot_id|>', '<|endoftext|>', '</s>']
length: [length, max_tokens, max_output_tokens, max_completion_tokens, max_length, model_length,
         model_context_window_exceeded, context_length_exceeded, token_limit, error_limit, '2',
         max_new_tokens, maximum_tokens, context_window_exceeded, limit, truncated, reason_max_len,
       reason_max_context]
tool_calls: [tool_calls, tool_use, tool_call, function_call, tool-calls, tool, requires_action,
             tool_requests, tooluse, reason_tool_calls]
content_filter: [content_filter, content-filter, content_filtered, contentfilter, safety, refusal,
                 guardrail_intervened, guardrail, recitation, blocklist, prohibited_content, spii,
                 image_safety, image_prohibited_content, image_recitation, model_armor, error_toxic,
                 sensitive, blocked, jailbreak, '3', '4', '6', '7', '8']
error: [error, failed, failure, malformed_function_call, unexpected_tool_call, too_many_tool_calls,
        malformed_model_output, malformed_tool_use, network_error, server_error, incomplete_error,
        no_image, missing_thought_signature, '9', engine_error, insufficient_system_resource]
cancelled: [cancelled, canceled, user_cancel, abort, aborted, client_cancelled, turn_detected,
            client_disconnect, interrupted]
pause: [pause_turn, pause, compaction, queued, in_progress, starting, processing]
{% endset %}
{{ return(fromyaml(text)) }}
{% endmacro %}
