-- Settings as the rules of this extension read them.

-- pgcascade.setting(1)
--     The value of a setting pgcascade.*, as SHOW writes it; a session that may not change it cannot have.
--     Native, since calling it loads the library: current_setting() would believe a placeholder (pgext/src/guc.rs).
--     Errors: not a setting of this extension.
create function pgcascade.setting(i_name text) returns text
language c stable strict as 'MODULE_PATHNAME', 'setting_wrapper';

comment on function pgcascade.setting(text) is 'value of a setting pgcascade.*, which an ordinary session cannot forge';
